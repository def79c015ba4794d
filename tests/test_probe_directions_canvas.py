"""probe.directions on the embedded model: every finder runs end to end, and some have an effect that the judge sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activations_store import ActivationStore
from probe.canvas import FACTORS, caption, sample_scene, shipped_judge
from probe.capture import CapturePlan, collect
from probe.directions import (
    CAV,
    ICA,
    LDA,
    NMF,
    PCA,
    Asymmetry,
    DictionaryColumns,
    HJacobian,
    JacobianSpectrum,
    LatentSVD,
    LocalEdit,
    LogisticProbe,
    MeanDifference,
    Point,
    Pullback,
    RidgeProbe,
    ScoreRank,
    TraceDimension,
    load_direction,
    random_direction,
    save_direction,
    trajectory,
)
from probe.interventions import TopKDictionary
from probe.model import PipelineEps, generate, load_pipeline

STEPS, SEEDS = 4, [0, 1]
SITE = "unet.up_blocks.1:out"
CONTRAST: dict[str, Any] = {"site": SITE, "factor": "background", "positive": "dark", "negative": "white"}
PROMPTS = [caption(sample_scene(np.random.default_rng(100 + i), background="white")) for i in range(2)]


@pytest.fixture(scope="module")
def canvas():
    return load_pipeline("canvas")


@pytest.fixture(scope="module")
def store(canvas, tmp_path_factory) -> ActivationStore:
    """24 samples on dark and white backgrounds, the last two of four steps."""
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, background=("dark", "white")[i % 2]) for i in range(24)]
    plan = CapturePlan.for_pipeline(
        canvas,
        [SITE, "mid_block", "unet:in"],
        [caption(scene) for scene in scenes],
        labels={"background": [scene.background for scene in scenes]},
        steps=STEPS,
        record_steps=(2, 3),
        branches=("cond",),
        dtype="float32",
        images=False,
    )
    return collect(canvas, plan, tmp_path_factory.mktemp("canvas") / "store")


@pytest.fixture(scope="module")
def plain(canvas) -> np.ndarray:
    return draw(canvas, [])


def draw(canvas, edits) -> np.ndarray:
    return generate(canvas, PROMPTS, SEEDS, steps=STEPS, interventions=edits)


def dark(images: np.ndarray) -> np.ndarray:
    return shipped_judge()(images).probs["background"][:, FACTORS["background"].index("dark")]


def random_dictionary() -> TopKDictionary:
    W = torch.nn.functional.normalize(torch.randn(8, 96, generator=torch.Generator().manual_seed(0)), dim=1)
    return TopKDictionary(W.T.clone(), torch.zeros(8), W, torch.zeros(96), k=2)


FINDERS = {
    "pca": lambda: PCA(site=SITE, n_components=3),
    "pca of maps, joint": lambda: PCA(site=SITE, view="map", n_components=3, joint=True),
    "ica": lambda: ICA(site=SITE, view="tokens", n_components=3),
    "nmf": lambda: NMF(site=SITE, view="tokens", n_components=3, max_rows=2000),
    "lda": lambda: LDA(**CONTRAST, shrinkage=0.1),
    "logistic": lambda: LogisticProbe(**CONTRAST),
    "ridge": lambda: RidgeProbe(**CONTRAST, penalty=0.1),
    "cav": lambda: CAV(**CONTRAST, repeats=5),
    "dictionary": lambda: DictionaryColumns(site=SITE, dictionary=random_dictionary(), features=[0, 5]),
}


@pytest.mark.parametrize("name", FINDERS)
def test_finders_on_a_store_feed_interventions(canvas, store, plain, name, tmp_path):
    finder = FINDERS[name]().fit(store)
    if hasattr(finder, "factor"):
        assert finder.auc_.min() == 1.0  # the background is plain to see at this site
    found = load_direction(save_direction(finder.direction_, tmp_path / "d"))
    assert found.hash == finder.direction_.hash and found.timesteps == (499, 249)
    changed = np.abs(draw(canvas, [found.intervention(0, 3.0, branch="cond")]).astype(int) - plain)
    assert changed.mean() > 0.5


def test_the_difference_of_means_moves_the_background_and_a_random_direction_does_not(canvas, store, plain):
    found = MeanDifference(**CONTRAST).fit(store).direction_
    assert dark(plain).max() < 0.01
    assert dark(draw(canvas, [found.intervention(0, 2.0, unit="raw", branch="cond")])).min() > 0.99
    assert dark(draw(canvas, [random_direction(found, 0).intervention(0, 2.0, unit="raw", branch="cond")])).max() < 0.01


def test_what_can_be_read_need_not_be_used(canvas, store):
    found = MeanDifference(**dict(CONTRAST, site="unet.mid_block:out")).fit(store)
    assert found.auc_.min() == 1.0
    assert dark(draw(canvas, [found.direction_.intervention(0, 2.0, unit="raw", branch="cond")])).max() < 0.01


def test_the_state_of_one_sample_is_written_into_another(canvas, store, plain):
    svd = LatentSVD(rank=4).fit(store)
    assert svd.singular_values_.shape == (2, 8, 16) and svd.overlap_[0, 1] > 4 / 16  # more than chance
    edit = svd.write(store, source=0, target=1, step=0, rank=8)
    assert edit.steps == (2,)
    assert np.abs(draw(canvas, [edit.intervention(unit="raw")]).astype(int) - plain).mean() > 1


@pytest.fixture(scope="module")
def point(canvas) -> tuple[PipelineEps, Point]:
    model = PipelineEps(canvas)
    return model, trajectory(model, PROMPTS[0], SEEDS[0], steps=STEPS, guidance=2.0)[2]


def test_directions_inside_the_network_change_the_image_more_than_random_ones(canvas, point, plain):
    model, where = point
    finder = HJacobian(site="mid_block", k=2, oversample=3).fit(model, [where])
    assert finder.singular_[0].converged and finder.singular_[0].residual < 0.01
    change = [
        np.abs(draw(canvas, [d.intervention(0, 20.0, steps=(2,))]).astype(int)[0] - plain[0]).mean()
        for d in (finder.direction_, random_direction(finder.direction_, 0))
    ]
    assert change[0] > 1.5 * change[1] > 0


def test_pullback_directions_feed_interventions(canvas, point, plain):
    model, where = point
    finder = Pullback(feature="mid_block", k=2, oversample=3).fit(model, [where])
    assert finder.singular_[0].converged and finder.direction_.steps == (2,)
    edit = finder.direction_.intervention(0, 10.0)
    assert np.abs(draw(canvas, [edit]).astype(int)[0] - plain[0]).mean() > 0.5


@pytest.mark.slow
def test_a_local_edit_changes_its_part_of_the_image(canvas, point, plain):
    model, where = point
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    ratios = []
    for rank in (0, 10):
        found = LocalEdit(mask=mask, null_rank=rank, batch=12, oversample=2, max_iter=3).fit(model, [where])
        change = np.abs(draw(canvas, [found.direction_.intervention(0, 8.0)]).astype(int)[0] - plain[0]).mean((0, 2))
        ratios.append(change[:32].mean() / change[32:].mean())
    assert ratios[1] > 2 * ratios[0] and ratios[1] > 3


def test_measurements_of_geometry(point):
    model, where = point
    spectrum = JacobianSpectrum(k=4, max_iter=3, probes=4, batch=9).fit(model, [where])
    assert spectrum.total_[0] > (spectrum.singular_values_[0] ** 2).sum()
    asymmetry = Asymmetry(probes=4).fit(model, [where])
    assert 0 < asymmetry.asymmetry_[0] < 0.5  # a trained denoiser is nearly a gradient
    trace = TraceDimension(noise=(0.2,), probes=4).fit(model, where.z, where.cond)
    assert np.isfinite(trace.dimension_).all() and trace.dimension_se_[0] > 0


def test_score_rank_runs_on_a_network(tiny_pipe):
    model = PipelineEps(tiny_pipe)
    found = ScoreRank(noise=(0.2,), draws=2).fit(model, torch.zeros(1, *model.sample_shape))
    assert found.singular_values_.shape == (1, 256) and 0 <= found.dimension_[0] < 256
