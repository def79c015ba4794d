"""Features, correspondence, learned mixing, probe grids and segments against known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.capture import CapturePlan, Recorder, collect, resolve_sites
from probe.capture.recorder import CallClock
from probe.errors import InvalidRequest, NotFitted
from probe.lenses import (
    Hyperfeatures,
    NoisedImages,
    background_segment,
    correspond,
    diffusion_features,
    normalised_cut,
    pck,
    probe_grid,
    store_vectors,
)

SITES = ["up_blocks.0", "mid_block"]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_features_are_what_the_site_computes(tiny_pipe, images):
    """Beside a full call of the denoiser on the same noised images, recorded without stopping early."""
    found = diffusion_features(tiny_pipe, images, SITES, [1.0, -1.0], batch_size=2)
    assert list(found.maps) == ["unet.up_blocks.0:out", "unet.mid_block:out"]
    for batch in NoisedImages(tiny_pipe, images, [""] * 3, [1.0, -1.0], batch_size=2):
        seen = {}
        clock = CallClock(("cond",), step=5, calls=1)
        keep = lambda site, step, branches, rows, grid, seen=seen: seen.update({str(site): (rows, grid)})  # noqa: E731
        with torch.no_grad(), Recorder(tiny_pipe, resolve_sites(tiny_pipe, SITES), keep, clock=clock):
            batch.run()
        for site, (rows, grid) in seen.items():
            expected = rows.transpose(1, 2).unflatten(2, grid).numpy()
            got = found.maps[site][batch.step, batch.samples.start : batch.samples.stop]
            np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(
        found.vectors()["unet.mid_block:out"], found.maps["unet.mid_block:out"].mean((3, 4)), rtol=1e-6
    )


def test_draws_are_averaged(tiny_pipe, images):
    both = diffusion_features(tiny_pipe, images[:1], "mid_block", [0.0], seeds=[4], draws=2)
    one, two = (
        diffusion_features(tiny_pipe, images[:1], "mid_block", [0.0], seeds=[seed]) for seed in (4, 4 + 1_000_003)
    )
    site = "unet.mid_block:out"
    np.testing.assert_allclose(both.maps[site], (one.maps[site] + two.maps[site]) / 2, atol=1e-5)
    assert not np.allclose(one.maps[site], two.maps[site], atol=1e-3)


def test_an_image_corresponds_to_itself(tiny_pipe, images):
    maps = diffusion_features(tiny_pipe, images, "up_blocks.0", [2.0]).maps["unet.up_blocks.0:out"][0]
    height, width = maps.shape[-2:]
    y, x = np.mgrid[:height, :width]
    centres = np.stack([(x.ravel() + 0.5) / width, (y.ravel() + 0.5) / height], 1)
    found = correspond(maps[0], maps[0], centres)
    np.testing.assert_allclose(found.points, centres)
    np.testing.assert_allclose(found.similarity, 1.0, atol=1e-5)
    # Shifted by a cell, matches shift by a cell; mirrored, they are mirrored.
    moved = correspond(maps[0], np.roll(maps[0], 1, axis=2), centres)
    np.testing.assert_allclose(moved.points[:, 0], (centres[:, 0] + 1 / width) % 1.0)
    mirrored = correspond(maps[0], maps[0, :, :, ::-1].copy(), centres)
    np.testing.assert_allclose(mirrored.points[:, 0], 1 - centres[:, 0])
    assert pck(found.points, centres, 0.5).all()
    np.testing.assert_array_equal(
        pck(np.array([[0.5, 0.5], [0.5, 0.56]]), np.full((2, 2), 0.5), np.array([0.5, 0.5])), [True, False]
    )


def test_a_finer_search_grid_finds_points_between_cells():
    """A linear ramp is interpolated exactly, so points between cells are found on the finer grid."""
    ramp = np.stack([np.tile(np.arange(8.0), (8, 1)), np.tile(np.arange(8.0)[:, None], (1, 8)), np.full((8, 8), 5.0)])
    points = np.array([[0.40625, 0.59375], [0.21875, 0.71875]])  # centres of cells of a 16 x 16 grid
    found = correspond(ramp.astype(np.float32), ramp.astype(np.float32), points, grid=(16, 16))
    np.testing.assert_allclose(found.points, points)


def test_mixing_finds_the_site_that_knows():
    """One site has the same random field in both images of a pair, moved; the other has noise."""
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((6, 8, 12, 12), dtype=np.float32)
    shifted = np.roll(fields, 2, axis=3)
    knows = np.concatenate([fields, shifted])[None]
    noise = rng.standard_normal((1, 12, 5, 6, 6), dtype=np.float32)
    y, x = np.mgrid[2:10, 2:9]
    points = np.stack([(x.ravel() + 0.5) / 12, (y.ravel() + 0.5) / 12], 1)
    moved = points + np.array([2 / 12, 0])
    pairs = [(i, i + 6) for i in range(6)]
    maps = {"noise": noise, "knows": knows}
    model = Hyperfeatures(width=8, steps=150, rate=0.03).fit(maps, pairs[:5], [(points, moved)] * 5)
    assert model.weights_.sum() == pytest.approx(1.0) and model.weights_[1, 0] > 0.7
    assert model.loss_[-20:].mean() < 0.5 * model.loss_[:5].mean()
    descriptors = model.transform(maps)
    assert descriptors.shape == (12, 8, 12, 12)
    held_out = correspond(descriptors[5], descriptors[11], points)
    assert pck(held_out.points, moved, 0.5).mean() > 0.95
    with pytest.raises(NotFitted, match="call fit"):
        Hyperfeatures().transform(maps)
    with pytest.raises(InvalidRequest, match="two or more matched points"):
        Hyperfeatures().fit(maps, [(0, 6)], [(points[:1], moved[:1])])


def test_a_probe_grid_finds_the_planted_cell():
    rng = np.random.default_rng(1)
    labels = np.repeat(["cup", "key", "moon"], 40)
    vectors = {name: rng.standard_normal((2, 120, 6)) for name in ("early", "late")}
    vectors["late"][1] += 4.0 * np.eye(3, 6)[np.repeat([0, 1, 2], 40)]
    found = probe_grid(vectors, labels.tolist(), shuffles=4, log_snr=[1.0, -1.0])
    assert found.best == ("late", 1) and found.accuracy[1, 1] > 0.95 and found.n_held_out == 60
    others = np.delete(found.accuracy.ravel(), 3)
    assert (others < 0.6).all() and abs(found.null.mean() - 1 / 3) < 0.08
    assert ((found.low <= found.accuracy) & (found.accuracy <= found.high)).all()
    with pytest.raises(InvalidRequest, match="fewer than two labels"):
        probe_grid(vectors, ["cup"] * 120)
    with pytest.raises(InvalidRequest, match="expected \\(steps, samples"):
        probe_grid(vectors, ["cup"] * 7)


def test_vectors_of_a_store(tiny_pipe, tmp_path):
    prompts = ["a red star", "a blue cup"] * 2
    plan = CapturePlan.for_pipeline(tiny_pipe, ["mid_block"], prompts, steps=2, guidance=2.0, images=False)
    collect(tiny_pipe, plan, tmp_path / "store")
    from activations_store import ActivationStore

    store = ActivationStore.open(tmp_path / "store")
    vectors, samples = store_vectors(store, ["unet.mid_block:out"])
    site = store.site("unet.mid_block:out").sel(branch="cond")
    np.testing.assert_array_equal(samples, np.arange(4))
    for step in range(2):
        np.testing.assert_allclose(
            vectors["unet.mid_block:out"][step], site.read(step=step)[:, 0, 0].astype(np.float32).mean(1), atol=1e-6
        )


def test_planted_blocks_are_cut_apart():
    """Four blocks of one vector each, with noise; a ground without parts; two halves that nothing connects."""
    rng = np.random.default_rng(2)
    truth = np.zeros((12, 12), int)
    truth[:4, :6], truth[2:9, 8:], truth[9:, :5] = 1, 2, 3
    vectors = np.linalg.qr(rng.standard_normal((16, 4)))[0].T
    features = vectors[truth].transpose(2, 0, 1) + 0.02 * rng.standard_normal((16, 12, 12))
    for centred in (True, False):
        found = normalised_cut(features, centred=centred)
        assert len(np.unique(found)) == 4
        for part in range(4):
            assert len(np.unique(found[truth == part])) == 1
    assert found[-1, -1] == 0 and background_segment(found) == 0  # the largest is the ground
    assert len(np.unique(normalised_cut(features, max_segments=2))) == 2
    alike = np.ones((16, 8, 8)) + 0.02 * rng.standard_normal((16, 8, 8))
    assert not normalised_cut(alike, centred=False).any()  # any cut of a graph of equals costs 1
    halves = np.repeat(np.eye(2)[:, None, :], 6, 1).repeat(3, 2)  # two orthogonal vectors, side by side
    split = normalised_cut(halves, centred=False, limit=0.01)
    np.testing.assert_array_equal(split, np.tile([0, 0, 0, 1, 1, 1], (6, 1)))
    with pytest.raises(InvalidRequest, match="expected finite"):
        normalised_cut(np.zeros((3, 100, 100)))
