"""Comparing features: matches with known answers, then the page in its states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboard_pages import open_page, words
from hypothesis import given, settings
from hypothesis import strategies as st
from test_apps_dashboard_run import D_SAE

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")


def dictionary(n: int = 64, d: int = 32, d_sae: int = 20, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(decoder, pooled, permutation): a second dictionary is the first with its features in another order."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(d_sae, d)), rng.exponential(size=(d_sae, n)), rng.permutation(d_sae)


def test_a_renamed_feature_is_found_by_both_measures() -> None:
    from apps.dashboard import matching

    decoder, pooled, order = dictionary()
    for feature in (0, 7, 19):
        found = matching.match(decoder[feature], 3 * decoder[order], pooled[feature], 5 * pooled[order] + 1)
        there = order.tolist().index(feature)
        assert found.best("cosine") == found.best("correlation") == there
        assert found.cosine is not None and found.correlation is not None
        assert found.cosine[there] == pytest.approx(1)
        assert found.correlation[there] == pytest.approx(1)
        assert found.beats_null("cosine") and found.beats_null("correlation")
        assert found.rank("cosine", there) == 1
        assert found.ranked(3)[0] == there
        assert f"Both measures suggest feature {there}" in matching.verdict(found)


def test_disagreement_and_chance_are_said() -> None:
    from apps.dashboard import matching

    decoder, pooled, _ = dictionary()
    swapped = pooled[[1, 0, *range(2, 20)]]  # feature 0 writes as 0 does, and is on when 1 is
    found = matching.match(decoder[0], decoder, pooled[0], swapped)
    assert (found.best("cosine"), found.best("correlation")) == (0, 1)
    assert matching.verdict(found).startswith("The measures disagree: feature 0 by decoder cosine 1.00, feature 1 by")
    assert set(found.ranked(2)) == {0, 1}
    stranger = matching.match(None, None, np.random.default_rng(9).exponential(size=64), pooled, reason="other site")
    assert stranger.best("cosine") is None
    assert not stranger.beats_null("correlation")
    assert "no better than chance" in matching.verdict(stranger)
    assert matching.verdict(matching.match(None, None, None, None)) == "No match can be suggested."


def test_a_feature_is_no_match_of_itself() -> None:
    from apps.dashboard import matching

    decoder, pooled, _ = dictionary()
    decoder[3], pooled[5] = decoder[0] + 0.1 * decoder[1], pooled[0] + 0.1 * pooled[1]
    found = matching.match(decoder[0], decoder, pooled[0], pooled, without=0)
    assert (found.best("cosine"), found.best("correlation")) == (3, 5)
    assert found.rank("cosine", 0) is None
    pooled[7] = 0  # a dead feature correlates with nothing, and is never the best
    assert np.isnan(matching.correlations(pooled[:1], pooled)[0, 7])


def test_nulls_are_what_chance_reaches() -> None:
    from apps.dashboard import matching

    rng = np.random.default_rng(3)
    beaten = 0
    for _ in range(60):  # the true null: nothing is alike
        found = matching.match(None, None, rng.exponential(size=40), rng.exponential(size=(30, 40)))
        beaten += found.beats_null("correlation")
    assert beaten <= 10  # 60 / 21 are expected; more than 10 happen once in 4,000 times
    largest = [matching.cosines(rng.normal(size=64), rng.normal(size=(400, 64))).max() for _ in range(20)]
    assert np.mean(largest) == pytest.approx(matching.chance_cosine(400, 64), rel=0.2)


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(0, 9), max_size=30), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_common_samples_are_the_same_sample(first: list[int], second: list[int], most: int) -> None:
    from apps.dashboard import matching

    a, b = ([(f"prompt {i}", i) for i in numbers] for numbers in (first, second))
    at_a, at_b = matching.common(a, b, most)
    assert [a[i] for i in at_a] == [b[i] for i in at_b]
    assert len(at_a) == min(most, len(set(first) & set(second)))
    assert (np.diff(at_a) > 0).all()


def test_a_locked_step_is_the_nearest_in_log_snr() -> None:
    from apps.dashboard import matching

    assert [matching.nearest_step(x, (-30.0, -4.0, 0.0, 2.5)) for x in (-20, -3, 1.0, 9)] == [0, 1, 2, 3]


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    return partial(open_page, monkeypatch, page="compare")


def test_a_feature_is_found_again_in_another_run(app: Callable[..., Any], planted: Path, tmp_path: Path) -> None:
    """The other run has the same bundle and no dictionary: its features are found by when they are on."""
    for run, parts in (("a", ("sae", "bundle", "store")), ("b", ("bundle",))):
        (tmp_path / run).mkdir()
        for part in parts:
            (tmp_path / run / part).symlink_to(planted / part)
    page = app(tmp_path, run="a", f="9", cp_with="b/mid_block", cp_step="2")
    assert not page.warning
    said = words(page)
    assert "Feature 9 is most alike by correlation 1.00" in said
    assert "A dictionary is missing beside its bundle: no cosine" in said
    assert page.query_params["cp_f"] == "9"  # what is suggested is shown
    assert said.count("step 2 of 5") == 2  # both panes, at the locked step
    assert len(page.get("plotly_chart")) == 3
    assert len(page.get("image")) >= 2 * (8 + 1)
    page = app(tmp_path, run="a", f="9", cp_with="a/mid_block")
    assert page.query_params["cp_f"] != "9"  # it is not its own match
    taken = next(b for b in page.button if b.key.startswith("cp_take_") and b.label != page.query_params["cp_f"])
    taken.click().run()
    assert not page.exception
    assert page.query_params["cp_f"] == taken.label
    (tmp_path / "b" / "bundle").unlink()
    (tmp_path / "b" / "bundle" / "mid_block").mkdir(parents=True)
    (tmp_path / "b" / "bundle" / "mid_block" / "bundle.json").write_text("{}")
    page = app(tmp_path, run="a", f="9", cp_with="b/mid_block")
    assert "A feature bundle cannot be read" in words(page)
    assert page.selectbox(key="widget_cp_with").value == "b/mid_block"  # another can be chosen


def test_wrong_link_and_dead_feature(app: Callable[..., Any], planted: Path) -> None:
    page = app(planted, f=str(D_SAE - 1), cp_with="../x", cp_f="99999", cp_step="77")
    said = words(page)
    for asked in ("dictionary '../x'", "feature '99999'", "step '77'"):
        assert f"asks for {asked}" in said
    assert "This feature is dead" in said


def test_run_without_a_bundle_says_what_comes_next(app: Callable[..., Any], planted: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for part in ("store", "sae"):
        (tmp_path / "run" / part).symlink_to(planted / part)
    assert f"denoscope features {tmp_path / 'run'}" in words(app(tmp_path / "run"))
