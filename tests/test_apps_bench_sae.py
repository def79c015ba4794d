"""``denoscope bench sae`` on a handful of renders: every part is there, and what is finished is not done again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.bench.sae import BenchConfig, bench_sae, recovery_table
from apps.errors import OutputExists
from apps.object_masks import object_masks
from probe.canvas import render_batch

SMALL = BenchConfig(renders=48, levels=2, sites=("mid_block",), expansion=1, k=8, rows=2048, prompts=2)


@pytest.mark.slow
def test_the_bench_from_renders_to_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from activations_store import ActivationStore
    from apps.judging import shipped_judge
    from probe.model import load_pipeline

    pipe, judge, said = load_pipeline("canvas"), shipped_judge(), []
    measured = bench_sae(pipe, judge, SMALL, tmp_path, said.append)
    parts = {row["part"] for row in measured.rows}
    assert parts == {
        *("reconstruction", "step", "branch", "cosine", "recovery", "concept", "stability", "grid"),
        *("substitution", "substitution step", "images"),
    }
    for name in ("features", "untrained", "pca", "random", "neurons"):
        assert 0.3 < (measured.ratios[f"{name}_auc"] or 0) < 1
        assert 0 < (measured.ratios[f"{name}_iou"] or 0) < 1
    assert (measured.ratios["recovered_over_zero"] or 0) <= 1
    assert "mid_block, PCA" in recovery_table(measured.rows)

    # Masks reach the grid: cells of which the render's own coverage is half or more.
    store = ActivationStore.open(tmp_path / "store")
    masks = object_masks(store, store.sites[0], np.arange(48))
    assert masks is not None
    coverage = render_batch(range(48), split="train", seed=1_000).masks
    side = int(np.sqrt(masks.shape[1]))
    cells = coverage.reshape(48, side, 64 // side, side, 64 // side).mean((2, 4)).reshape(48, -1)
    clear = np.abs(cells - 127.5) > 1
    np.testing.assert_array_equal(masks[clear], (cells >= 127.5)[clear])
    with Image.open(tmp_path / "renders/mask-000000.png") as drawn:
        assert drawn.size == (64, 64)

    monkeypatch.setattr("apps.bench.sae.recovery_rows", None)  # would fail if anything were measured again
    said.clear()
    again = bench_sae(pipe, judge, SMALL, tmp_path, said.append)
    assert again.ratios == measured.ratios
    assert sum("done before" in line for line in said) == 4
    with pytest.raises(OutputExists, match="other k"):
        bench_sae(pipe, judge, BenchConfig(**{**vars(SMALL), "k": 4}), tmp_path, said.append)
