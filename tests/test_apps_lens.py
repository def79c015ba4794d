"""denoscope lens: every lens writes its sheet and its numbers; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from activations_store import ActivationStore
from apps.cli import FAILED, main
from apps.images import heat_colours
from apps.lenses.sheets import SEGMENTS, dotted, number_table, segment_sheet, word_sheet
from probe.capture import CapturePlan, collect
from probe.lenses import probe_grid, store_vectors
from probe.model import load_pipeline

ATTN = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
DRAW = ["--prompt", "a red star", "--seeds", "0", "1", "--steps", "2", "--guidance", "2"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    return [str(folder / name) for name in ("one.png", "two.png")]


def look(tiny_folder: Path, out: Path, *arguments: str) -> dict:
    assert main(["lens", arguments[0], "--model", str(tiny_folder), "--out", str(out), *arguments[1:]]) == 0
    assert np.asarray(Image.open(out)).std() > 0
    return json.loads(out.with_suffix(".json").read_text())


def test_words_while_drawing_and_on_pictures(tiny_folder, pictures, tmp_path):
    found = look(tiny_folder, tmp_path / "a.png", "attention", *DRAW, "--words", "star", "red")
    assert np.shape(found["maps"])[:2] == (2, 2) and found["words"] == [["star", "red"]] * 2
    given = ["--images", *pictures, "--caption", "a red star", "--words", "star", "--sites", ATTN]
    plain = look(tiny_folder, tmp_path / "b.png", "attention", *given)
    slope = look(tiny_folder, tmp_path / "c.png", "attention", *given, "--gradient")
    assert list(plain["mass"]) == [f"unet.{ATTN}:probs"] and plain["maps"] != slope["maps"]


def test_points_segments_and_inversion_of_pictures(tiny_folder, pictures, tmp_path):
    given = ["--images", pictures[0], pictures[0], "--site", "up_blocks.0"]
    found = look(
        tiny_folder,
        tmp_path / "f.png",
        "features",
        *given,
        "--point",
        "0.3125,0.6875",
        "--log-snr",
        "6",
        "--draws",
        "2",
    )
    assert np.hypot(*np.subtract(found["matches"][0]["points"][0], (0.3125, 0.6875))) < 0.3
    cut = look(tiny_folder, tmp_path / "s.png", "segment", *given, "--max-segments", "2")
    assert np.shape(cut["segments"]) == (2, 8, 8) and len(cut["background"]) == 2
    again = look(
        tiny_folder, tmp_path / "i.png", "invert", "--images", pictures[0], "--steps", "3", "--edit", "a blue cup"
    )
    assert max(again["state_error"]) < 1e-5 and again["pixel_error"] != again["codec_error"]


def test_tracing_drift_and_text_of_drawings(tiny_folder, tmp_path):
    sites = ["--sites", "conv_out", "mid_block", "--windows", "0-1"]
    for lens in ("trace", "patch"):
        found = look(tiny_folder, tmp_path / f"{lens}.png", lens, *DRAW, "--corrupt", "a blue cup", *sites)
        assert found["effect"][0] == [[1.0, 1.0]] and len(found["sites"]) == 2
    noisy = look(tiny_folder, tmp_path / "n.png", "trace", *DRAW, "--noise", "3", *sites)
    assert noisy["effect"][0] == [[1.0, 1.0]]
    drift = look(tiny_folder, tmp_path / "d.png", "drift", *DRAW, "--sites", "mid_block")
    assert np.shape(drift["cka"]["unet.mid_block:out"]) == (2, 2)
    layers = look(tiny_folder, tmp_path / "t.png", "text", *DRAW)
    assert layers["layers"] == [0, 1] and "judge" not in layers


def test_probes_of_a_store_are_those_of_the_grid(tiny_folder, tmp_path, capsys):
    pipe = load_pipeline(tiny_folder)
    labels = {"object": ["star", "cup"] * 8, "colour": ["red", "red", "blue", "", *["blue", "red"] * 6]}
    prompts = [f"a {thing}" for thing in labels["object"]]
    plan = CapturePlan.for_pipeline(pipe, ["mid_block", "up_blocks.0"], prompts, labels=labels, steps=2, images=False)
    collect(pipe, plan, tmp_path / "run" / "store")
    asked = ["lens", "probe", str(tmp_path / "run"), "--shuffles", "1", "--out", str(tmp_path / "p.png")]
    assert main([*asked, "--dry-run"]) == 0 and not (tmp_path / "p.png").exists()
    assert "2 sites x 2 steps x object, colour: 8 probes" in capsys.readouterr().out
    assert main(asked) == 0
    assert np.asarray(Image.open(tmp_path / "p.png")).std() > 0 and "shuffled" in capsys.readouterr().out
    found = json.loads((tmp_path / "p.json").read_text())["factors"]
    store = ActivationStore.open(tmp_path / "run" / "store")
    vectors, _ = store_vectors(store, store.sites)
    grid = probe_grid(vectors, labels["object"], shuffles=1)
    assert found["object"]["accuracy"] == grid.accuracy.tolist() and found["object"]["sites"] == list(store.sites)
    assert (found["object"]["n_held_out"], found["colour"]["n_held_out"]) == (8, 7)  # one sample has no colour
    assert main([*asked, "--force", "--factor", "style"]) == FAILED
    assert "'style'" in capsys.readouterr().err


def test_hyperfeatures_of_listed_pairs(tiny_folder, pictures, tmp_path, capsys):
    """Every point's match is at its own place, so that "the same place" finds all of them."""
    names = [Path(picture).name for picture in pictures]
    lines = [f"{a},{b},{x},{y},{x},{y}" for a in names for b in names for x, y in ((0.2, 0.3), (0.7, 0.4), (0.5, 0.8))]
    listed = Path(pictures[0]).parent / "points.csv"
    listed.write_text("\n".join(["first,second,x1,y1,x2,y2", *lines]))
    asked = ["--pairs", str(listed), "--sites", "mid_block", "up_blocks.0", "--log-snr", "4", "0", "--iterations", "5"]
    found = look(tiny_folder, tmp_path / "h.png", "hyperfeatures", *asked)
    assert "4 pairs of 2 images, 2 sites x 2 levels, 5 steps" in capsys.readouterr().out
    assert np.shape(found["weights"]) == (2, 2) and np.sum(found["weights"]) == pytest.approx(1)
    assert found["pck"]["the same place"] == [1.0, 1.0] and len(found["loss"]) == 5 and found["n_taught"] == 2
    assert len(found["pck"]["mixed"]) == 2 and found["best"]["log_snr"] in found["log_snr"]
    dry = ["lens", "hyperfeatures", "--model", str(tiny_folder), "--out", str(tmp_path / "d.png"), *asked, "--dry-run"]
    assert main(dry) == 0 and not (tmp_path / "d.png").exists()
    for content, message in (
        ("\n".join(["first,second,x1,y1,x2,y2", *lines[:4]]), "2 pairs; expected 4 or more"),
        ("a,b\n1,2", "expected first, second"),
        (f"first,second,x1,y1,x2,y2\n{names[0]},{names[1]},0.1,2,0,0", "line 2: expected x and y"),
    ):
        listed.write_text(content)
        assert main(dry) == FAILED
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hyperfeatures", "--pairs", "canvas:3"], "N of 4 or more"),
        (["attention", "--words", "star"], "give --prompt, or --images"),
        (["attention", *DRAW, "--words", "moon"], "'moon' does not occur"),
        (["attention", *DRAW, "--words", "star", "--by", "head"], "name one of --sites"),
        (["trace", *DRAW, "--sites", "mid_block"], "give --corrupt PROMPT or --noise SCALE"),
        (["trace", *DRAW, "--sites", "mid_block", "--corrupt", "a", "--concept", "object=star"], "of canvas"),
        (["text", *DRAW, "--layers", "7"], "has layers 0 to 1"),
        (["segment", "--images", "canvas:x"], "expected canvas:N"),
        (["features", "--images", "nothing.png", "nothing.png"], "nothing.png"),
    ],
)
def test_mistakes_are_one_line(tiny_folder, tmp_path, capsys, arguments, message):
    out = tmp_path / "x.png"
    assert main(["lens", arguments[0], "--model", str(tiny_folder), "--out", str(out), *arguments[1:]]) == FAILED
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and not out.exists()


def test_a_map_for_each_layer_step_or_head(tiny_folder, tmp_path):
    whole = look(tiny_folder, tmp_path / "a.png", "attention", *DRAW, "--words", "star", "--sites", ATTN)
    for by, parts in (("layer", 1), ("step", 2), ("head", 8)):
        given = [*DRAW, "--words", "star", "--sites", ATTN, "--by", by]
        found = look(tiny_folder, tmp_path / f"{by}.png", "attention", *given)
        assert len(found["by"]) == parts and found["maps"] == whole["maps"] and not whole["by"]
        np.testing.assert_allclose(np.mean(list(found["by"].values()), 0), whole["maps"], rtol=1e-4)


def test_sheets_show_what_they_are_given():
    table = number_table(np.array([[0.0, 1.0], [np.nan, 0.5]]), ["a", "b"], ["c", "d"], title="t")
    assert table.dtype == np.uint8 and len(np.unique(table.reshape(-1, 3), axis=0)) > 3
    half = number_table(np.array([[0.5]]), [""], [""], title="", top=1.0)
    assert (half == heat_colours(np.asarray(0.5))).all(-1).sum() >= 48 * 48  # coloured on the scale that was given
    image = np.full((8, 8, 3), 100, np.uint8)
    marked = dotted(image, np.array([[0.25, 0.75]]), side=64)
    assert (marked[48, 16] != 100).any() and (marked[16, 48] == 100).all()
    halves = segment_sheet(image[None], [np.array([[0, 1], [0, 1]])], ["wide words for a caption that is wrapped"])
    body = np.unique(halves.reshape(-1, 3), axis=0).tolist()
    assert all(
        (0.45 * np.full(3, 100) + 0.55 * colour).astype(int).tolist() in body for colour in SEGMENTS[:2].astype(float)
    )
    sheet = word_sheet(image[None], np.zeros((1, 1, 2, 2)), [["star"]], ["row"])
    assert sheet.shape[2] == 3
