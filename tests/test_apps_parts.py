"""The parts that commands, demo and dashboard share: run folders, measurements, prompts, images, report."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from apps import report
from apps.errors import InvalidFile, InvalidOption, UnknownName
from apps.images import (
    change_map,
    data_uri,
    heat_colours,
    labelled_grid,
    overlay,
    read_image,
    resize,
    save_png,
    signed_colours,
)
from apps.measurement import Measurement, bootstrap_mean, read_measurement, wilson
from apps.progress import table
from apps.prompts import balanced
from apps.runs import Run, check_name, find_runs, run_of, sae_folder, site_name

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)> & ' http://evil.example"


class TestRuns:
    def test_members_are_found_directly_and_by_name(self, tmp_path: Path) -> None:
        run = Run(tmp_path / "x")
        for folder in ("sae/a", "sae/b", "bundle"):
            (run.folder / folder).mkdir(parents=True)
        for path in ("sae/a/cfg.json", "sae/b/cfg.json", "bundle/bundle.json"):
            (run.folder / path).write_text("{}")
        assert list(run.saes()) == ["a", "b"] and list(run.bundles()) == ["main"]
        assert run.sae("a") == run.folder / "sae" / "a" and run.bundle() == run.folder / "bundle"
        with pytest.raises(UnknownName, match=r"has 2 dictionaries; choose one of: a, b \(in .*x/sae\)"):
            run.sae()
        with pytest.raises(UnknownName, match="no recipe"):
            run.recipe()
        assert find_runs(tmp_path) == [run] and find_runs(run.folder) == [run]

    def test_the_dictionary_that_a_path_means(self, tmp_path: Path) -> None:
        run = Run(tmp_path / "x")
        only = run.folder / "sae" / "a"
        only.mkdir(parents=True)
        (only / "cfg.json").write_text("{}")
        assert sae_folder(run.folder) == sae_folder(only.parent) == sae_folder(only) == only
        assert sae_folder(tmp_path / "elsewhere") == tmp_path / "elsewhere"  # what reads it says what is wrong
        shutil.copytree(only, only.with_name("b"))
        assert sae_folder(only) == only
        for path in (run.folder, only.parent):
            with pytest.raises(UnknownName, match="choose one of: a, b"):
                sae_folder(path)

    @pytest.mark.parametrize("path", ["x/sae/a", "x/bundle/a"])
    def test_the_run_of_a_member(self, path: str) -> None:
        assert run_of(path) == (Run(Path("x")), "a")
        assert run_of(Path(path).parent) == (Run(Path("x")), "main")

    def test_site_names(self) -> None:
        assert site_name("unet.up_blocks.1.attentions.0:out") == "up_blocks.1.attentions.0"
        assert site_name("unet.mid_block:delta") == "mid_block-delta"

    @pytest.mark.parametrize("name", ["", "..", "a/b", "../a", ".a", "a\\b", "a" * 200, "a\n", "-a"])
    def test_names_cannot_leave_the_run(self, name: str) -> None:
        with pytest.raises(InvalidOption, match="cannot be used"):
            check_name(name)


class TestMeasurement:
    def test_has_the_keys_of_the_format_and_survives_a_round_trip(self, tmp_path: Path) -> None:
        rows = [{"a": np.float32(0.5), "b": math.nan, "c": np.arange(2)}]
        written = Measurement("test", rows, {"r": 0.25}, config={"n": 3}).write(tmp_path / "m.json")
        assert set(written) == {"name", "machine", "device", "versions", "git", "rows", "ratios", "config"}
        assert written["rows"] == [{"a": 0.5, "b": None, "c": [0, 1]}]
        assert {"python", "torch", "numpy"} <= set(written["versions"])
        assert set(written["machine"]) == {"processor", "cores", "memory_gb", "system"}
        assert read_measurement(tmp_path / "m.json") == written
        assert [path.name for path in tmp_path.iterdir()] == ["m.json"]

    def test_another_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "m.json"
        for content, expected in (("{", "not JSON"), ("[]", "a JSON list"), ('{"name": "x"}', "machine, device")):
            path.write_text(content)
            with pytest.raises(InvalidFile, match=expected):
                read_measurement(path)

    @pytest.mark.parametrize(
        ("successes", "n", "low", "high"),
        [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (90, 100, 0.8256, 0.9448), (0, 0, 0.0, 1.0)],
    )
    def test_wilson(self, successes: int, n: int, low: float, high: float) -> None:
        found = wilson(successes, n)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
        assert math.isnan(found.value) if n == 0 else found.value == successes / n

    def test_bootstrap_resamples_clusters(self) -> None:
        values = np.repeat(np.random.default_rng(0).normal(size=20), 50)
        alone, clustered = bootstrap_mean(values), bootstrap_mean(values, np.repeat(np.arange(20), 50))
        assert alone.value == clustered.value == pytest.approx(values.mean())
        assert clustered.high - clustered.low > 4 * (alone.high - alone.low)


class TestPrompts:
    def test_every_value_is_equally_frequent_in_every_long_prefix(self) -> None:
        from probe.canvas import FACTORS

        made = balanced(240)
        for factor, values in FACTORS.items():
            assert set(Counter(made.labels[factor]).values()) == {240 // len(values)}
            counts = Counter(made.labels[factor][:60])
            assert max(counts.values()) - min(counts.get(v, 0) for v in values) <= 2
        assert len(set(made.prompts)) == 240
        assert balanced(20).prompts == made.prompts[:20] and balanced(20, seed=1).prompts != made.prompts[:20]

    def test_splits_and_exclusions_hold(self) -> None:
        from probe.canvas import is_held_out

        for split in ("train", "held_out"):
            labels = balanced(50, split=split).labels
            cells = zip(labels["object"], labels["style"], labels["colour"], strict=True)
            assert {is_held_out(*cell) for cell in cells} == {split == "held_out"}
        first = balanced(40)
        assert set(balanced(40, exclude=set(first.prompts)).prompts).isdisjoint(first.prompts)
        assert set(balanced(30, within={"object": ("star", "moon")}).labels["object"]) == {"star", "moon"}

    def test_more_prompts_than_combinations_repeat(self) -> None:
        fixed = {"object": ("star",), "style": ("flat",), "colour": ("red",)}
        assert Counter(balanced(10, within=fixed).prompts).most_common()[0][1] == 3

    def test_what_does_not_exist_is_refused(self) -> None:
        with pytest.raises(InvalidOption, match="no object 'dragon'"):
            balanced(3, within={"object": ("dragon",)})
        fixed = {"object": ("star",), "style": ("flat",), "colour": ("red",)}
        with pytest.raises(InvalidOption, match="no combination"):
            balanced(3, split="held_out", within=fixed)


class TestImages:
    def test_colours_brighten_steadily(self) -> None:
        lightness = heat_colours(np.linspace(0, 1, 64)).astype(float) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(lightness) > -1.0).all() and lightness[-1] - lightness[0] > 180
        low, middle, high = signed_colours(np.array([-1.0, 0.0, 1.0])).astype(int)
        assert low[2] > low[0] and high[0] > high[2] and (middle > 230).all()

    def test_overlay_shows_zero_as_the_image_and_uses_the_given_scale(self) -> None:
        image = np.full((64, 64, 3), 120, np.uint8)
        assert np.array_equal(overlay(image, np.zeros((4, 4)), scale=1.0, side=64), image)
        heat = np.zeros((4, 4))
        heat[1, 2] = 2.0
        shown = overlay(image, heat, scale=2.0, side=64, smooth=False)
        changed = np.abs(shown.astype(int) - 120).sum(-1) > 0
        assert changed[16:32, 32:48].all() and changed.sum() == 256
        assert (
            np.abs(overlay(image, heat, scale=8.0, side=64, smooth=False).astype(int) - 120).sum()
            < np.abs(shown.astype(int) - 120).sum()
        )
        with pytest.raises(InvalidOption, match="scale"):
            overlay(image, heat, scale=0.0)

    def test_files_round_trip_and_damage_is_reported(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
        save_png(tmp_path / "a.png", image)
        assert np.array_equal(read_image(tmp_path / "a.png"), image)
        (tmp_path / "b.png").write_bytes(b"not an image")
        with pytest.raises(InvalidFile, match=r"b\.png"):
            read_image(tmp_path / "b.png")
        with pytest.raises(FileNotFoundError):
            read_image(tmp_path / "c.png")

    def test_grid_and_small_helpers(self) -> None:
        image = np.zeros((64, 64, 3), np.uint8)
        sheet = labelled_grid([[image, None], [image]], row_labels=["a", "b"], captions=[["x\ny"], []], side=32)
        assert sheet.ndim == 3 and (sheet == 0).all(-1).sum() >= 2 * 32 * 32
        assert resize(image, 128).shape == (128, 128, 3)
        assert change_map(image, image + 255).max() == 1.0
        assert data_uri(image).startswith("data:image/png;base64,")
        with pytest.raises(InvalidOption):
            labelled_grid([])

    def test_text_table(self) -> None:
        assert table(["name", "n"], [["a", "10"], ["long", "2"]]).splitlines()[2:] == ["a     10", "long   2"]


class TestReport:
    def test_hostile_text_stays_text(self) -> None:
        picture = report.Picture(np.zeros((4, 4, 3), np.uint8), HOSTILE, HOSTILE, marked=True)
        html = report.page(
            HOSTILE,
            [
                report.heading(HOSTILE, HOSTILE),
                report.section(HOSTILE, report.text(HOSTILE), report.sub(HOSTILE), report.code(HOSTILE)),
                report.tiles([(HOSTILE, HOSTILE, True)]),
                report.data_table([HOSTILE], [[HOSTILE + "\n" + HOSTILE]], HOSTILE),
                report.picture_grid([(HOSTILE, [picture, None])], [HOSTILE]),
                report.colour_bar(1.0, HOSTILE),
                report.line_chart([(HOSTILE, [0.0, 1.0])], [0.0, 1.0], x_label=HOSTILE, y_label=HOSTILE),
                report.definitions([(HOSTILE, HOSTILE)]),
                report.folded(HOSTILE, report.text(HOSTILE)),
            ],
        )
        tags = re.findall(r"<(\w+)((?:\s+[\w-]+(?:=(?:\"[^\"]*\"|'[^']*'|\w+))?)*)\s*>", html)
        assert "script" not in {name for name, _ in tags}
        assert not re.search(r"\son\w+=", " ".join(attributes.split('"')[0] for _, attributes in tags))
        assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', html))
        assert html.count("<script") == 0 and html.count("<img ") == 1
        assert "Content-Security-Policy" in html and "default-src 'none'" in html

    def test_charts_refuse_lines_that_do_not_fit(self) -> None:
        with pytest.raises(InvalidOption):
            report.line_chart([("a", [1.0])], [0.0, 1.0], x_label="x", y_label="y")

    def test_a_page_is_written_whole(self, tmp_path: Path) -> None:
        report.write_page(tmp_path / "a" / "r.html", report.page("t", [report.text("x")]))
        assert (tmp_path / "a" / "r.html").read_text().startswith("<!doctype html>")
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["r.html"]


def test_demo_configuration_is_checked_and_hashed() -> None:
    from dataclasses import replace

    from apps.demo.config import DemoConfig

    config = DemoConfig()
    assert config.content_hash == DemoConfig().content_hash != replace(config, k=config.k + 1).content_hash
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    for change in ({"object_site": "unet.x:out"}, {"n_seeds": 0}, {"objects": ("star",)}, {"steer_strengths": (1.0,)}):
        with pytest.raises(InvalidOption):
            replace(config, **change)
