"""The dashboard's pages of results: directions, unlearning, steering, measurements, from files of known content."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboard_pages import open_page, words
from test_apps_dashboard_run import D_IN, D_SAE, HOSTILE, SITE, planted_results

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")

STRENGTHS = (-1.0, 0.0, 1.0, 2.0)


def measurement(name: str, rows: list[dict[str, Any]], **ratios: float) -> str:
    keys = {"name": name, "machine": {"cores": 2, "processor": "a processor"}, "device": "cpu", "versions": {}}
    return json.dumps(keys | {"git": None, "rows": rows, "ratios": ratios, "config": {"push": {"name": "feature 7"}}})


def steer_rows() -> list[dict[str, Any]]:
    rows = []
    for push, slope in (("push", 0.4), ("random", 0.0)):
        for strength in STRENGTHS:
            share = {"target": max(0.0, slope * strength), "kept_object": 0.9, "artifacts": 0.1, "change": 0.2}
            ends = {f"{k}_{end}": v for k, v in share.items() for end in ("low", "high")}
            rows.append({"push": push, "group": "without it", "strength": strength, "n": 8} | share | ends)
    return rows


def bench_rows() -> list[dict[str, Any]]:
    shares = {"ira": 0.9, "cra": 0.8, "artifacts": 0.1, "change_retain": 0.05}
    return [
        {"part": part, "method": method, "factor": "object", "target": target, "ua": ua} | shares
        for method, ua in (("no_edit", 0.0), ("uce", 0.75))
        for part, target in (("target", "star"), ("average", "average"))
    ]


@pytest.fixture(scope="module")
def run(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted run with two directions, one of them the first feature's own, and results of several commands."""
    import torch
    from PIL import Image
    from safetensors.numpy import load_file

    from apps.dashboard.readers import WEIGHTS
    from probe.directions import Direction, save_direction

    folder = tmp_path_factory.mktemp("results") / "run"
    folder.mkdir()
    for part in ("store", "sae", "bundle", "results.json"):
        (folder / part).symlink_to(planted / part)
    vectors = torch.from_numpy(load_file(folder / "sae" / "mid_block" / WEIGHTS)["W_dec"][:2].copy())
    for name, vector, label in (("first", vectors[0], "star"), ("both", -vectors.sum(0), "moon")):
        about = {"finder": "LDA", "parameters": {"factor": "object", "positive": label}}
        save_direction(Direction(SITE, vector, provenance=about), folder / "directions" / name)
    (folder / "steer-red").mkdir()
    (folder / "steer-red" / "steer.json").write_text(measurement("steer", steer_rows(), up_saturation=1.0))
    (folder / "bench.json").write_text(measurement("bench.unlearn", bench_rows()))
    rows = [
        {"part": "probe", "what": w, "headline": f"h{w}", "value": v, "low": v - 0.1, "high": v, "n": 4}
        for w, v in ((HOSTILE, 0.5), ("b", 0.7))
    ]
    (folder / "lenses.json").write_text(measurement("bench.lenses", rows, a=0.5))
    (folder / "words.json").write_text(json.dumps({"prompts": [HOSTILE], "log_snr": 2.0}))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "words.png")
    (folder / "package.json").write_text("{}")  # somebody else's
    (folder / "torn.json").write_text("{")
    edit = folder / "unlearn" / "object-star"
    for part in (edit, edit / "unedited"):
        part.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(part / "000001.png")
    (edit / "shown.json").write_text(json.dumps({"000001.png": "a cup"}))
    return folder


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return partial(open_page, monkeypatch)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_findings_are_measurements_and_sheets_and_nothing_else(run: Path) -> None:
    from apps.dashboard import findings

    found = [f for label, path in findings.files(run) if (f := findings.read(label, path)) is not None]
    assert [f.label for f in found] == [
        "bench.json",
        "lenses.json",
        "results.json",
        "words.json",
        "steer-red/steer.json",
    ]
    assert [f.kind for f in found][3:] == ["", "steer"]
    assert found[3].picture == run / "words.png"
    assert not findings.holds_any(run / "store" / "images")


def test_a_value_and_its_interval_are_one_cell() -> None:
    from apps.dashboard import tables

    rows = [
        {"part": "x", "method": "a", "iou": 0.4567, "iou_low": 0.4, "iou_high": 0.5, "n": 24, "empty": None},
        {"part": "x", "method": "b", "iou": 0.0, "iou_low": 0.0, "iou_high": 0.1, "n": 24, "empty": None},
    ]
    body, common = tables.table(rows)
    assert body == [{"method": "a", "IoU": "0.457 (0.4 to 0.5)"}, {"method": "b", "IoU": "0 (0 to 0.1)"}]
    assert common == {"images": "24"}
    assert tables.headline(rows) == "iou"
    assert [tables.label(row, rows) for row in rows] == ["a", "b"]
    assert tables.cell({"gain_object": 0.5, "gain_low_object": 0.25, "gain_high_object": 1.0}, "gain_object") == (
        "0.5 (0.25 to 1)"
    )
    assert list(tables.parts([{"measure": "s"}, {"part": "p"}, {}])) == ["s", "p", ""]
    assert [tables.number(v) for v in (None, True, 12345, 1234.5, [1, 2.5], "x")] == [
        "", "yes", "12,345", "1,234", "1, 2.5", "x",
    ]  # fmt: skip


def test_directions_are_compared_with_features_and_each_other(run: Path) -> None:
    from safetensors.numpy import load_file

    from apps.dashboard import directions, readers

    listed = [directions.read(run / "directions" / name) for name in directions.names(run)]
    assert [d.name for d in listed] == ["both", "first"]
    assert listed[1].concept == "object star"
    decoder = load_file(run / "sae" / "mid_block" / readers.WEIGHTS)["W_dec"]
    assert decoder.shape == (D_SAE, D_IN)
    feature, cosine = directions.nearest_features(listed[1], decoder, 1)[0]
    assert (feature, round(cosine, 5)) == (0, 1.0)
    near = directions.nearest_features(listed[0], decoder, 2)
    assert {f for f, _ in near} == {0, 1}
    np.testing.assert_allclose([c for _, c in near], -np.sqrt(0.5), atol=1e-5)
    np.testing.assert_allclose(directions.likeness(listed), [[1, -np.sqrt(0.5)], [-np.sqrt(0.5), 1]], atol=1e-5)
    assert directions.nearest_features(listed[0], decoder[:, :-1]) == []


def test_frontier_leaves_the_unedited_model_out() -> None:
    from apps.dashboard import result_figures, results

    points = results.frontier(bench_rows(), "object")
    assert [(p["group"], round(p["x"], 3), p["y"], p["average"]) for p in points] == [
        ("uce", 0.85, 0.75, False),
        ("uce", 0.85, 0.75, True),
    ]
    drawn = result_figures.frontier(points, x_title="kept", y_title="forgotten").to_dict()
    assert list(drawn["data"][0]["y"]) == [75.0, 75.0]
    assert results.method_table(results.methods(bench_rows()))[1]["UA"] == "75.0 %"


def test_dose_response_has_a_band_for_every_curve_with_an_interval() -> None:
    from apps.dashboard.result_figures import Curve, dose_response

    lines = [Curve("push", [0, 1], [0, 0.5], [0.5, 1]), Curve("random", [0, 0], muted=True)]
    drawn = dose_response([0.0, 1.0], lines, x_title="strength", y_title="probability", marks=[(1.0, "<b>")]).to_dict()
    assert [trace.get("name") for trace in drawn["data"]] == [None, "push", "random"]
    assert list(drawn["data"][0]["y"]) == [0.5, 1.0, 0.5, 0.0]
    assert drawn["layout"]["annotations"][0]["text"] == "&lt;b&gt;"


# --- pages ---------------------------------------------------------------------------------------------------------


def test_unlearning_page(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "unlearning", un_file="results.json")
    assert "97.0 % (94.0 to 99.0)" in page.dataframe[0].value.to_string()
    assert len(page.get("plotly_chart")) == 1
    assert len(page.get("image")) == 1
    assert "a cup" in words(page)
    page = app(run, "unlearning", un_file="bench.json")
    assert page.dataframe[0].value["Method"].tolist() == ["no edit", "uce"]
    assert page.query_params["un_file"] == "bench.json"


def test_steering_page(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "steering")
    assert "feature 7" in words(page)
    assert len(page.get("plotly_chart")) == 2
    assert "random push of the same length" in words(page)


def test_measurements_page(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "measurements", me_file="lenses.json")
    assert len(page.get("plotly_chart")) == 1
    assert page.dataframe[0].value["what"].tolist() == [HOSTILE, "b"]
    assert "In all rows: images 4" in words(page)
    page = app(run, "measurements", me_file="words.json")
    assert len(page.get("image")) == 1
    formatted = [str(e.value) for kind in ("markdown", "caption") for e in page.get(kind)]
    assert not any("alert(1)" in text for text in formatted)


def test_directions_page(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "directions", dr="first")
    assert page.dataframe[0].value["Concept"].tolist() == ["object moon", "object star"]
    assert "cosine +1.00" in words(page)
    assert f"denoscope steer --direction {run}/directions/first --out {run}/steer-first" in words(page)


@pytest.mark.parametrize(
    ("page", "params", "says"),
    [
        ("unlearning", {"un_file": "../../etc/passwd"}, "asks for file '../../etc/passwd'"),
        ("measurements", {"me_file": "<b>"}, "asks for file '<b>'"),
        ("steering", {"st_file": "x"}, "asks for sweep 'x'"),
        ("directions", {"dr": "../first"}, "asks for direction '../first'"),
    ],
)
def test_wrong_link_is_told(app: Callable[..., Any], run: Path, page: str, params: dict[str, str], says: str) -> None:
    shown = app(run, page, **params) if page != "steering" else app(two_sweeps(run), page, **params)
    assert shown.warning
    assert says in words(shown)
    assert "Showing" in words(shown)


def two_sweeps(run: Path) -> Path:
    (run / "steer-blue").mkdir(exist_ok=True)
    (run / "steer-blue" / "steer.json").write_text(measurement("steer", steer_rows()))
    return run


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("unlearning", "denoscope unlearn --run {run} --object star"),
        ("steering", "denoscope steer --sae {run}/sae/NAME --concept colour=red --out {run}/steer-red"),
        ("directions", "--method mean-difference --factor object --positive LABEL"),
        ("measurements", "denoscope sae eval {run}"),
    ],
)
def test_empty_page_says_how_to_fill_it(
    app: Callable[..., Any], run: Path, tmp_path: Path, page: str, command: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "store").symlink_to(run / "store")
    assert command.format(run=tmp_path / "run") in words(app(tmp_path / "run", page))


def test_folder_of_results_alone_opens(app: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(planted_results()))
    page = app(tmp_path, "home")
    assert [element.value for element in page.subheader] == ["Results in this folder"]
    assert "97.0 % (94.0 to 99.0)" in app(tmp_path, "unlearning").dataframe[0].value.to_string()
    assert "no dictionary" in words(app(tmp_path, "feature"))


def test_damaged_direction_is_named(app: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "directions" / "x").mkdir(parents=True)
    (tmp_path / "run" / "store").symlink_to(run / "store")
    (tmp_path / "run" / "directions" / "x" / "direction.json").write_text("{}")
    assert "direction" in words(page := app(tmp_path / "run", "directions"))
    assert "cannot be read" in words(page)
