"""Health: checks with known thresholds, records of a store with known damage, and the page in its states."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboard_pages import open_page, words

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")

STABILITY = {"part": "stability", "dictionary": "mid_block", "other": "again", "rows": 9} | {
    f"{what}{null}_{number}": value
    for what in ("decoder", "activation")
    for null, value in (("", 0.8), ("_null", 0.2))
    for number in ("mean", "median", "shared")
}


def states(checks: list[Any]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_a_threshold_is_between_warning_and_ok() -> None:
    from apps.dashboard import health

    for value, state in ((health.EXPLAINED_BELOW, "ok"), (health.EXPLAINED_BELOW - 1e-9, "warning")):
        checks = health.dictionary_checks({"explained_variance": value, "ev_per_step": [0.9, None, 0.4]}, None)
        assert states(checks) == {
            "Explained variance": state,
            "Explained variance of the worst step": "warning",
            "Dead features": "not measured",
            "Dense features": "not measured",
        }
    table = {"dead": np.array([True, False] * 5), "dense": np.array([True] + [False] * 9)}
    checks = health.dictionary_checks({"dead_fraction": 0.0, "dense_fraction": 0.9}, table)
    assert states(checks)["Dead features"] == "warning"  # the bundle saw more rows than the metrics
    assert states(checks)["Dense features"] == "ok"
    assert [c.found for c in checks][2:] == ["50.0 %", "10.0 %"]
    assert health.dictionary_checks({"explained_variance": 0.9, "held_out": False}, None)[0].found.endswith("training")


def test_what_is_missing_names_its_command() -> None:
    from apps.dashboard import health

    checks = [health.splice_check(None), health.seed_check(None), *health.store_checks(None, 0, 0)]
    assert {check.state for check in checks} == {"not measured"}
    assert [check.command.split(" {run}")[0] for check in checks] == ["sae eval", "sae compare", "collect --out"]


def test_loss_and_seeds_are_judged_beside_chance() -> None:
    from apps.dashboard import health

    row = {"recovered_over_mean": 0.95, "recovered_over_mean_low": 0.9, "recovered_over_mean_high": 0.97}
    assert health.splice_check(row).found == "95.0 % (90.0 to 97.0 %)"
    assert health.splice_check(row | {"recovered_over_mean": 0.89}).state == "warning"
    assert health.seed_check(STABILITY).state == "ok"
    assert health.seed_check(STABILITY | {"decoder_shared": 0.29}).state == "warning"
    assert health.seed_check(STABILITY | {"decoder_mean_low": 0.2}).state == "warning"  # as alike as an untrained one


def test_rows_come_from_the_last_file_that_has_them() -> None:
    from apps.dashboard.health import rows_of

    old = [{"part": "substitution", "dictionary": "a", "n": 1}, {"part": "stability", "dictionary": "b", "other": "a"}]
    new = [{"part": "substitution", "dictionary": "a", "n": 2}, {"part": "substitution", "dictionary": "b"}]
    assert rows_of([old, new], "substitution", "a") == [new[0]]
    assert rows_of([old, new], "stability", "a") == [old[1]]
    assert rows_of([old, new], "grid", "a") == []


def test_records_say_what_is_there_and_what_is_no_number(tmp_path: Path) -> None:
    import pyarrow as pa

    from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
    from apps.dashboard import health
    from apps.dashboard.store_records import read_records

    sites = (SiteSpec("unet.a:out", 2, 3, dtype="float32"), SiteSpec("unet.b:out", 1, 2, dtype="float16"))
    spec = StoreSpec(sites, 6, (9, 5, 1), (-3.0, 0.0, 3.0), ("uncond", "cond"), samples_per_shard=2, ragged=True)
    table = pa.table({"sample": range(6), "prompt": ["x"] * 6, "seed": range(6)})
    writer = StoreWriter.create(tmp_path / "s", spec, table, fingerprint={}, plan={}, allow_nonfinite=True)
    a, b = np.zeros((2, 3, 2, 2, 3), np.float32), np.zeros((2, 3, 2, 1, 2), np.float32)
    present = np.ones((2, 3, 2), bool)
    present[0, 2, 1] = False  # one sample of one branch ends before the last step
    a[0, 1, 0, 0, :2] = np.nan, np.inf
    b[1, 0, 0, 0, 0] = 1e6  # too large for float16
    with writer:
        writer.write_shard(0, {"unet.a:out": a, "unet.b:out": b}, {"unet.a:out": present})
        writer.write_shard(2, {"unet.a:out": np.zeros_like(a), "unet.b:out": np.zeros_like(b)})
    found = read_records(ActivationStore.open(tmp_path / "s"))
    assert found.sites == ("unet.a:out", "unet.b:out")
    assert (found.n_shards, found.n_committed, found.n_read) == (3, 2, 2)
    np.testing.assert_allclose(found.recorded[0], [[4 / 6] * 3, [4 / 6, 4 / 6, 3 / 6]])
    np.testing.assert_allclose(found.recorded[1], 4 / 6)
    assert found.bad.tolist() == [[0, 2, 0], [1, 0, 0]]
    assert found.overflow.tolist() == [[0, 0, 0], [1, 0, 0]]
    checks = health.store_checks(found, 6, 4)
    assert [check.found for check in checks] == [
        "4 of 6",
        "3, 1 of them too large for the stored dtype",
        "1",
    ]
    assert {check.state for check in checks} == {"warning"}
    some = read_records(ActivationStore.open(tmp_path / "s"), most=1)
    assert some.n_read == 1
    assert "in 1 of 2 shards" in health.store_checks(some, 6, 4)[1].found


def test_marked_cells_and_gaps_are_drawn() -> None:
    from apps.dashboard import band_figures
    from apps.dashboard.result_figures import Curve
    from apps.dashboard.timeaxis import TimeAxis

    axis = TimeAxis((0, 1, 2), (9.0, 5.0, 1.0), (-3.01, -3.0, 3.0), "logsnr")  # two steps look alike in this unit
    values = np.array([[0.5, np.nan, 1.0]])
    drawn = band_figures.grid(axis, ["<b>"], values, colour_title="share", marks=[(0, 2, "why <i>")]).to_dict()
    assert [list(row) for row in drawn["data"][0]["z"]] == [[0.5, None, 1.0]]
    assert list(drawn["data"][0]["x"]) == [0, 1, 2]
    assert list(drawn["data"][1]["x"]) == [2]
    assert "why &lt;i&gt;" in drawn["data"][1]["text"][0]
    assert list(drawn["layout"]["yaxis"]["ticktext"]) == ["&lt;b&gt;"]
    nan = float("nan")
    curves = [Curve("a", [1, nan, 3], [0, nan, 2], [2, nan, 4]), Curve("null", [0, 0, 0], muted=True)]
    drawn = band_figures.bands(axis, curves, y_title="nats").to_dict()
    assert list(drawn["data"][0]["y"]) == [2, 4, 2, 0]  # the band leaves out the step without a value
    assert list(drawn["data"][1]["y"]) == [1, None, 3]


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return partial(open_page, monkeypatch, page="health")


def test_a_whole_run(app: Callable[..., Any], planted: Path, tmp_path: Path) -> None:
    """Measured files are found, the store is sound, and a byte that changes is found by the check of every byte."""
    import shutil

    for part in ("sae", "bundle"):
        (tmp_path / part).symlink_to(planted / part)
    shutil.copytree(planted / "store", tmp_path / "store")
    keys = {"machine": {}, "device": "cpu", "versions": {}, "git": None, "ratios": {}}
    step = {"part": "substitution step", "dictionary": "mid_block", "step": 1, "n": 4} | {
        f"recovered_over_{what}{end}": 0.97 for what in ("mean", "zero") for end in ("", "_low", "_high")
    }
    evaluated = [step, step | {"part": "substitution"}]
    (tmp_path / "sae_eval.json").write_text(json.dumps(keys | {"name": "sae.eval", "rows": evaluated}))
    (tmp_path / "seeds.json").write_text(json.dumps(keys | {"name": "sae.compare", "rows": [STABILITY]}))
    page = app(tmp_path)
    table = page.dataframe[0].value.set_index("Check")
    assert table.loc["Loss recovered in place of the site", "Found"] == "97.0 % (97.0 to 97.0 %)"
    assert table.loc["Samples stored", "Found"] == "96 of 96"
    assert not any("not measured" in state for state in table["State"])
    assert len(page.get("plotly_chart")) == 6
    page.button(key="he_quick").click().run()
    assert "sizes and records agree" in words(page)
    shard = max((f for f in (tmp_path / "store").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    page.button(key="he_quick").click().run()
    assert "Sound" in words(page)  # the size is as before
    page.button(key="he_whole").click().run()
    assert not page.exception
    assert "1 place is damaged" in words(page)
    assert f"denoscope store verify {tmp_path}" in words(page)


def test_unfinished_and_damaged_runs(app: Callable[..., Any], planted: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(planted / "store")
    said = words(app(tmp_path))
    assert "no dictionary has been trained" in said
    assert "Share of the planned samples" in said
    (tmp_path / "sae").symlink_to(planted / "sae")
    said = words(app(tmp_path))
    assert f"denoscope sae eval {tmp_path} --sae mid_block --substitute 16 --out {tmp_path}/mid_block-eval.json" in said
    assert f"denoscope features {tmp_path}" in said
    (tmp_path / "bundle" / "mid_block").mkdir(parents=True)
    (tmp_path / "bundle" / "mid_block" / "bundle.json").write_text("{}")
    assert "The feature bundle cannot be read" in words(app(tmp_path))
