"""The shipped judge on images it has never seen."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from probe.canvas import FACTORS, Judge, render_batch
from probe.canvas.judge import Verdict
from probe.canvas.render import Batch
from probe.canvas.train.wrecks import PIXEL_WRECKS, blends
from probe.canvas.world import Split

FRESH_SEED = 977  # used by no training and no calibration


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def fresh(judge: Judge) -> Callable[[Split], tuple[Batch, Verdict]]:
    """1,000 new renders of a split and what the judge says of them; each split is drawn once."""

    @cache
    def read(split: Split) -> tuple[Batch, Verdict]:
        batch = render_batch(range(1000), split=split, seed=FRESH_SEED)
        return batch, judge(batch.images)

    return read


# A sixth of the held-out images are watercolor keys, whose washed edge is nearest to a sketch.
@pytest.mark.parametrize(("split", "floor"), [("all", 0.99), ("held_out", 0.98)])
def test_reads_held_out_renders(fresh: Callable[..., tuple[Batch, Verdict]], split: Split, floor: float) -> None:
    batch, verdict = fresh(split)
    for i, (factor, names) in enumerate(FACTORS.items()):
        accuracy = np.mean(verdict.labels(factor) == np.asarray(names)[batch.labels[:, i]])
        assert accuracy >= floor, f"{factor}: {accuracy:.3f}"
    assert verdict.is_artifact.mean() <= 0.02


@pytest.mark.parametrize("kind", PIXEL_WRECKS, ids=lambda kind: kind.__name__)
def test_calls_wrecks_artifacts(judge: Judge, kind) -> None:
    images = render_batch(range(128), split="all", seed=FRESH_SEED).images
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.cat([kind(chunk, torch.Generator().manual_seed(i)) for i, chunk in enumerate(x.split(8))])
    wrecked = ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    # Two objects of one outline on top of each other look like one.
    assert judge(wrecked).is_artifact.mean() >= (0.85 if kind is blends else 0.9)


def test_probabilities_are_calibrated(fresh: Callable[..., tuple[Batch, Verdict]]) -> None:
    batch, verdict = fresh("all")
    for i, factor in enumerate(FACTORS):
        probs = verdict.probs[factor]
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
        # Expected calibration error collapses to one bin when nearly everything is right: mean confidence is accuracy.
        assert abs(probs.max(1).mean() - np.mean(probs.argmax(1) == batch.labels[:, i])) < 0.02


def test_verdict_does_not_depend_on_the_batch(judge: Judge) -> None:
    images = render_batch(range(12), seed=FRESH_SEED).images
    whole, single = judge(images), judge(images[3:4])
    np.testing.assert_allclose(whole.artifact[3], single.artifact[0], atol=1e-4)
    np.testing.assert_allclose(whole.probs["object"][3], single.probs["object"][0], atol=1e-4)


def test_other_images_are_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"must be \(N >= 1, 64, 64, 3\) uint8, got \(2, 32, 32, 3\) float64"):
        judge(np.zeros((2, 32, 32, 3)))  # type: ignore[arg-type]
