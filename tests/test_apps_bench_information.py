"""denoscope bench information: its scores on made maps, and a small run from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.bench.information import BenchConfig, bench_information, information_tables
from apps.bench.information_limits import matched_auc
from apps.bench.information_maps import overlap
from apps.bench.information_pairs import PAIRS, TEXTS
from apps.bench.information_removals import _row
from apps.errors import OutputExists
from probe.information import fano
from probe.model import PipelineEps, load_pipeline

SMALL = BenchConfig(images=4, nodes=2, label_images=2, label_nodes=2, pair_images=2, removals=2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overlap_chooses_its_threshold_on_other_images(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((40, 64)) < 0.3
    chosen = np.arange(40) < 20
    maps = np.where(masks, rng.uniform(0.6, 1.0, masks.shape), rng.uniform(0.0, 0.4, masks.shape))
    found = overlap(maps, masks, chosen)
    assert found["iou"] > 0.99 and found["auc"] == 1.0 and found["n"] == 20
    # The held-out half lies elsewhere: a threshold of the first half is no use, whatever is best there.
    moved = np.where(chosen[:, None], maps, np.where(masks, 0.3, 1.0))
    assert overlap(moved, masks, chosen)["iou"] < 0.1 and overlap(moved, masks, chosen)["auc"] == 0.0
    everywhere = overlap(np.ones_like(maps), masks, chosen)
    assert everywhere["iou"] == pytest.approx(masks[20:].mean(), abs=0.02) and everywhere["auc"] == 0.5
    assert overlap(np.zeros_like(maps), masks, chosen)["iou"] == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matched_auc_sets_position_aside(seed):
    rng = np.random.default_rng(seed)
    prior = rng.random(64) ** 3
    masks = rng.random((30, 64)) < prior
    same = np.tile(prior, (30, 1))
    assert (
        matched_auc(same, masks)["matched"] == pytest.approx(0.5)
        and overlap(same, masks, np.arange(30) < 15)["auc"] > 0.7
    )
    assert matched_auc(masks.astype(float), masks)["matched"] > 0.99
    seen = matched_auc(prior + 0.5 * masks + 0.5 * rng.random(masks.shape), masks)
    assert 0.6 < seen["matched_low"] <= seen["matched"] <= seen["matched_high"] < 1.0
    assert matched_auc(seen["matched"] * (1.0 - masks), masks)["matched"] < 0.01  # the wrong way round
    assert np.isnan(matched_auc(same, np.ones_like(masks))["matched"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correlations_of_predicted_and_observed_change(seed):
    rng = np.random.default_rng(seed)
    observed = rng.random((12, 4, 30))
    for level in ("cell", "image", "word"):
        seen = observed if level == "cell" else observed.mean(2)
        same = _row(level, "itself", np.exp(3.0 * seen), seen)
        assert same["rank"] == pytest.approx(1.0) and 0.8 < same["pearson"] < 1.0
        unrelated = _row(level, "noise", rng.random(seen.shape), seen)
        assert unrelated["pearson_low"] < 0.15 and unrelated["pearson_high"] > -0.15 and unrelated["n"] == 48


def test_fano_is_the_entropy_for_a_perfect_reader_and_nothing_at_chance():
    even = [np.log(n) for n in range(1, 13)]
    assert fano(0.0, 8, even[7]) == pytest.approx(even[7]) and fano(7 / 8, 8, even[7]) == pytest.approx(0.0, abs=1e-12)
    assert fano(0.05, 12, even[11]) == pytest.approx(2.1665, abs=1e-3)
    assert fano(0.3, 3, 0.8) == 0.0  # of unequal labels: read as the commonest one, wrong three times of ten


def test_pairs_name_every_text_once_and_end_in_the_text_of_both():
    assert len(set(TEXTS)) == len(TEXTS)
    words = {"object": "star", "colour": "red", "style": "neon", "background": "dark"}
    said = {name: [text.format_map(words) for text in texts] for name, texts in PAIRS.items()}
    assert said["duplicate"][1] == said["duplicate"][2] == "a red star on dark background in neon style"
    assert said["clause"][1:3] == ["a dark red star in neon style", "a red star on background in neon style"]
    assert all(len(set(texts)) >= 3 for texts in said.values())


@pytest.mark.slow
def test_a_small_run_and_its_second_time(tmp_path: Path):
    model = PipelineEps(load_pipeline("canvas"))
    lines: list[str] = []
    found = bench_information(model, SMALL, tmp_path, lines.append)
    parts = [row["part"] for row in found.rows]
    assert {p: parts.count(p) for p in set(parts)} == {
        "localisation": 10,
        "limits": 23,
        "labels": 4,
        "pairs": 10,
        "removals": 20,
    }
    shares = {row["method"]: row for row in found.rows if row["part"] == "localisation"}
    assert shares["everywhere"]["auc"] == 0.5 and shares["CMI"]["auc"] > 0.6
    for row in found.rows:
        if row["part"] == "labels":
            assert 0 <= row["posterior"] <= row["entropy"] + 1e-9 and 0 <= row["at_least"] <= row["entropy"] + 1e-9
            assert row["standard"] == pytest.approx(row["standard_before"] + row["standard_after"])
        if row["part"] == "pairs":
            assert row["redundancy"] + row["synergy"] + row["unique_first"] + row["unique_second"] == pytest.approx(
                row["both"]
            )
    assert "attention x CMI" in information_tables([dict(row) for row in found.rows])
    assert found.ratios["auc_CMI"] == shares["CMI"]["auc"]
    again: list[str] = []
    second = bench_information(model, SMALL, tmp_path, again.append)
    assert list(second.rows) == list(found.rows) and all(line.endswith("done before") for line in again)
    with pytest.raises(OutputExists, match="other settings"):
        bench_information(model, BenchConfig(), tmp_path, lines.append)
