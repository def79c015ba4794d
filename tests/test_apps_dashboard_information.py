"""Information: maps and doubts of rows with known values, and the page in its states."""

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

LOG_SNR = (-9.0, -4.0, 1.5)


def row(site: str = "unet.mid_block:out", step: int = 0, **changed: float | None) -> dict[str, Any]:
    """A row of ``info site`` that passes every check, but for what is changed."""
    values = {"standard": 1.0, "orthogonal": 0.9, "null_standard": 0.0, "null_orthogonal": 0.0}
    ends = {f"{k}_{end}": v + d for k, v in values.items() for end, d in (("low", -0.1), ("high", 0.1))}
    bounds = {"at_most": 2.3, "at_least": 0.5, "probe": 0.6, "probe_low": 0.5, "probe_high": 0.7, "missing": 0.0}
    about = {"site": site, "told": "style", "step": step, "log_snr": LOG_SNR[step], "n": 96, "kept": 0.9}
    return about | values | ends | bounds | changed


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, []),
        ({"null_standard_high": 0.9}, ["not above its null"]),
        ({"null_standard_high": None}, ["not above its null"]),
        ({"at_least": 1.2}, ["below 1.20, which a linear probe of the same rows proves"]),
        ({"at_least": 1.05}, []),  # the interval reaches it
        ({"at_most": 0.8}, ["above 0.80, the entropy of the labels"]),
        ({"at_most": 0.89}, []),  # by less than the integral may be off
        ({"at_least": None, "at_most": None}, []),  # prompts have no bounds
        ({"orthogonal": 0.7}, ["the forms are apart, 1.00 and 0.70: trained too briefly, or too few rows"]),
        ({"orthogonal": 1.5}, ["the forms are apart, 1.00 and 1.50: rows known by heart"]),
        ({"missing": 0.2}, ["0.2 nats lie beyond the noise levels that were measured"]),
    ],
)
def test_a_doubt_is_said_for_its_own_reason(changed: dict[str, Any], says: list[str]) -> None:
    from apps.dashboard.information import doubts

    assert doubts(row(**changed)) == says


def test_doubts_of_words() -> None:
    from apps.dashboard.information import estimated, word_doubts

    good = {"of": "object", "value": 5.0, "low": 4.0, "high": 6.0, "null": 1.0, "null_low": 0.0, "null_high": 2.0}
    assert word_doubts(good) == []
    assert word_doubts(good | {"null_high": 4.5}) == ["not above its null"]
    assert word_doubts(good | {"null": None, "null_low": None, "null_high": None}) == ["no null was measured"]
    part = {"of": "synergy", "value": 1.0, "low": 0.5, "high": 2.0}  # a part of a decomposition has no null
    assert word_doubts(part) == []
    assert word_doubts(part | {"low": 0.0}) == ["its interval reaches 0"]
    assert word_doubts(part | {"low": -9.0, "bits_per_dimension": 2.0}) == []
    chance = {"of": "accuracy", "null": 0.25, "value": 0.5, "low": 0.2, "high": 0.8}
    assert word_doubts(chance) == ["not above its null"]
    assert word_doubts(good | {"missing": 1.0}) == ["1 nats lie beyond the noise levels that were measured"]
    assert word_doubts(good | {"missing": 0.2}) == []  # four hundredths of the value
    assert estimated([good, {"of": "image 3", "value": 0.5}]) == [good]


def test_a_grid_has_sites_steps_and_gaps() -> None:
    from apps.dashboard import information

    rows = [row(step=2), row(step=0, standard_low=0.05), row("unet.up_blocks.1:out", 1, standard=0.2)]
    found = information.site_grid([*rows, row() | {"told": "object"}], "style", "standard")
    assert found.sites == ("unet.mid_block:out", "unet.up_blocks.1:out")
    assert found.steps == (0, 1, 2)
    assert found.log_snr == LOG_SNR
    np.testing.assert_array_equal(found.values, [[1.0, np.nan, 1.0], [np.nan, 0.2, np.nan]])
    assert [(r, i) for r, i, _ in found.doubts] == [(0, 0), (1, 1)]
    assert (
        information.counted(found.doubts, 3) == "2 of 3 cells are marked: 1 not above its null, 1 the forms are apart."
    )
    assert information.counted([], 3) == "All 3 cells pass every check."
    curve = information.site_curve(rows, "style", "unet.mid_block:out", "standard_low", found.steps)
    np.testing.assert_array_equal(curve, [0.05, np.nan, 0.9])
    assert information.told([*rows, row() | {"told": "object"}]) == ["style", "object"]


def test_estimates_stand_beside_their_nulls() -> None:
    from apps.dashboard.result_figures import against_null

    rows = [
        {"of": "<b>", "value": 5.0, "low": 4.0, "high": 7.0, "null": 1.0, "null_low": 0.5, "null_high": 2.0},
        {"of": "synergy", "value": 1.0, "low": 0.0, "high": 2.0},
    ]
    drawn = against_null(rows, x_title="nats").to_dict()
    assert [trace["name"] for trace in drawn["data"]] == ["estimate", "null"]
    assert list(drawn["data"][0]["y"]) == ["&lt;b&gt;", "synergy"]
    assert list(drawn["data"][0]["error_x"]["array"]) == [2.0, 1.0]
    assert list(drawn["data"][1]["x"]) == [1.0, None]
    assert list(drawn["data"][1]["error_x"]["arrayminus"]) == [0.5, None]


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return partial(open_page, monkeypatch, page="information")


@pytest.fixture
def run(planted: Path, tmp_path: Path) -> Path:
    """The planted run's store beside two files of results."""
    (tmp_path / "store").symlink_to(planted / "store")
    keys = {"machine": {}, "device": "cpu", "versions": {}, "git": None, "ratios": {}}
    rows = [row(step=step) for step in range(3)] + [row("unet.up_blocks.1:out", 2, standard_low=-0.1)]
    rows.append(row() | {"told": "object", "at_most": None, "at_least": None})
    (tmp_path / "site.json").write_text(json.dumps(keys | {"name": "info.site", "rows": rows}))
    of = {"of": "object", "value": 5.0, "low": 4.0, "high": 6.0, "null": 5.0, "null_low": 4.0, "null_high": 6.0, "n": 4}
    (tmp_path / "mi.json").write_text(json.dumps(keys | {"name": "info.mi", "rows": [of, of | {"of": "colour"}]}))
    return tmp_path


def test_maps_and_a_cell(app: Callable[..., Any], run: Path) -> None:
    page = app(run, if_file="site.json", if_told="style", if_site="unet.up_blocks.1:out", if_step="2", unit="t")
    said = words(page)
    assert not page.warning
    assert "1 of 4 cells are marked: 1 not above its null." in said
    assert "All 4 cells pass every check." in said  # in the orthogonal form
    assert "step 2 of 2 · t 665 · log-SNR 1.5" in said  # t comes from the store
    assert ":material/close: standard form: not above its null." in said
    assert page.dataframe[0].value.iloc[0]["value"] == "1 (-0.1 to 1.1)"
    assert len(page.get("plotly_chart")) == 3
    page = app(run, if_file="site.json", if_told="style", if_site="unet.up_blocks.1:out", if_step="0")
    assert "Step 0 was not measured at this site" in words(page)


def test_words_and_wrong_links(app: Callable[..., Any], run: Path) -> None:
    page = app(run, if_file="mi.json")
    assert page.dataframe[0].value["Doubts"].tolist() == ["not above its null"] * 2
    said = words(app(run, if_told="../x", if_site="<b>", if_step="99"))
    for asked in ("label '../x'", "site '<b>'", "step '99'"):
        assert f"asks for {asked}" in said


def test_nothing_measured_says_how(app: Callable[..., Any], planted: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(planted / "store")
    (tmp_path / "site.json").write_text("{")  # being written, or not ours: it is not listed
    said = words(app(tmp_path))
    assert f"denoscope info site {tmp_path} --tell object --out {tmp_path}/info" in said
