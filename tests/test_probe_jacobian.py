"""probe.directions: Jacobian products against dense matrices and differences, subspaces, masks (V19-V21, V27)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from conftest import build_tiny_pipeline
from seeded import SEEDS, normal

from probe.directions.jacobian import Jacobian, Restricted, spatial_weights
from probe.directions.points import EPS, X0, X_T, Point, added, jacobian, site_of, trajectory
from probe.directions.subspace import dense, principal_angles, top_singular
from probe.errors import InvalidDirection, UnknownSite
from probe.model import PipelineEps, x0_hat
from probe.model.analytic import GaussianMixture, LowRankMixture

PLACES = [
    ("mid_block", EPS),
    (X_T, "mid_block"),
    (X_T, X0),
    (X_T, EPS),
    ("down_blocks.1", "up_blocks.0.attentions.0:delta"),
]


class Matrix:
    """A linear map that is a matrix."""

    def __init__(self, m: torch.Tensor) -> None:
        self.m, (self.n_out, self.n_in) = m, m.shape

    def jvp(self, v):
        return v @ self.m.T

    def vjp(self, u):
        return u @ self.m


def small_pipeline():
    """The tiny pipeline at 4 x 4 x 4, so that dense Jacobians are cheap."""
    pipe = build_tiny_pipeline()
    pipe.unet.register_to_config(sample_size=4)
    return pipe


@pytest.fixture(scope="module", params=SEEDS)
def network(request) -> tuple[PipelineEps, Point]:
    """A UNet with random weights and attention, in float64, and a point."""
    pipe = small_pipeline()
    generator = torch.Generator().manual_seed(request.param)
    for p in pipe.unet.parameters():
        if p.ndim > 1:
            p.add_(torch.randn(p.shape, generator=generator) * p.std() * 0.5)
    pipe.unet.double()
    pipe.text_encoder.double()
    model = PipelineEps(pipe)
    return model, Point(normal(request.param + 5, 1, *model.sample_shape), 0.5, "a red star")


@pytest.mark.parametrize(("source", "target"), PLACES[:3])
def test_v19_products_and_singular_vectors_match_the_dense_jacobian(network, source, target):
    model, point = network
    op = jacobian(model, point, source, target, batch=32)
    rows = op.vjp(torch.eye(op.n_out).double())
    columns = op.jvp(torch.eye(op.n_in).double())
    assert (rows - columns.T).norm() / rows.norm() < 1e-10
    left, s, vt = torch.linalg.svd(rows)
    # Up to 9 iterations where s5 / s11 is 2. To x0 it is 1.1 and s5 / s6 is 1.01: up to 45, with the matrix's products.
    found = top_singular(Matrix(rows) if target == X0 else op, 5, oversample=5, max_iter=60, tol=1e-12)
    assert found.converged and found.residual < 1e-4
    assert ((found.s - s[:5]).abs() / s[:5]).max() < 1e-6
    assert torch.sin(principal_angles(found.v, vt[:5])).max() < 5e-4
    assert torch.sin(principal_angles(found.u, left.T[:5])).max() < 5e-4
    assert found.gap == pytest.approx(float(s[4] / s[5]), rel=1e-3)


@pytest.mark.parametrize(("source", "target"), PLACES)
def test_v20_products_match_central_differences(network, source, target):
    model, point = network
    op = jacobian(model, point, source, target, batch=2)
    v = normal(9, 2, op.n_in)
    h = 1e-5

    def shifted(step: float) -> torch.Tensor:
        if source == X_T:
            return jacobian(
                model, Point(point.z + step * v[:1].reshape(point.z.shape), 0.5, point.cond), X_T, target, batch=1
            ).value
        with added(model, site_of(model, source), step * v[:1].reshape(1, *op.in_shape)):
            return jacobian(model, point, X_T, target, batch=1).value

    difference = (shifted(h) - shifted(-h)).flatten() / (2 * h)
    assert (op.jvp(v)[0] - difference).norm() / difference.norm() < 5e-7
    u = normal(10, 2, op.n_out)
    torch.testing.assert_close((op.vjp(u) * v).sum(1), (op.jvp(v) * u).sum(1))  # <J^T u, v> = <u, J v>


@pytest.mark.parametrize("seed", SEEDS)
def test_v20_in_float32(tiny_pipe, seed):
    model = PipelineEps(tiny_pipe)
    z, v = normal(seed, 1, *model.sample_shape, dtype=torch.float32), normal(seed + 3, 1, 256, dtype=torch.float32)
    op = jacobian(model, Point(z, 0.5, "a red star"), X_T, EPS, batch=1)
    with torch.no_grad():
        up, down = (model.eps(z + h * v.reshape(z.shape), 0.5, "a red star") for h in (1e-2, -1e-2))
    difference = (up - down).flatten() / 2e-2
    assert (op.jvp(v)[0] - difference).norm() / difference.norm() < 1e-3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("a", [-1.0, 1.5])
def test_v21_jacobian_of_x0_by_products_is_symmetric_and_the_covariance(seed, a):
    model = GaussianMixture(
        2 * normal(seed, 3, 6), torch.stack([torch.diag(normal(seed + k, 6) ** 2) for k in range(3)])
    )
    z = normal(seed + 9, 1, 6)
    j = dense(jacobian(model, Point(z, a), batch=6))
    exact = math.sqrt(1 / (1 + math.exp(-a))) * (1 + math.exp(a)) * model.covariance_given(z, a)[0]
    assert (j - exact).norm() / exact.norm() < 1e-9 and (j - j.T).norm() / j.norm() < 1e-9


# Subspace iteration


@pytest.mark.parametrize("seed", SEEDS)
def test_known_spectra(seed):
    u, v = (torch.linalg.qr(normal(seed + i, n, 40)).Q for i, n in enumerate((90, 60)))
    s = 0.8 ** torch.arange(40).double()
    found = top_singular(Matrix((u * s) @ v.T), 4, seed=seed)
    assert found.converged and found.residual < 1e-3
    torch.testing.assert_close(found.s, s[:4], rtol=1e-5, atol=0)
    assert found.gap == pytest.approx(1.25, rel=1e-3)
    assert torch.sin(principal_angles(found.v, v.T[:4])).max() < 1e-2
    assert (found.v.gather(1, found.v.abs().argmax(1, keepdim=True)) > 0).all()


def test_low_rank_whole_rank_and_the_flat_spectrum():
    low = normal(0, 30, 3) @ normal(1, 3, 20)
    found = top_singular(Matrix(low), 5, tol=1e-8)
    assert found.converged and (found.s[3:] < 1e-9 * found.s[0]).all()
    full = top_singular(Matrix(normal(2, 6, 4)), 4, max_iter=200)
    assert full.gap == math.inf
    torch.testing.assert_close(full.s, torch.linalg.svdvals(normal(2, 6, 4)))
    flat = top_singular(Matrix(torch.eye(8).double()), 2)
    assert flat.gap < 1.05 and flat.converged


def test_oversampling_pays():
    u, v = (torch.linalg.qr(normal(i, 60, 60)).Q for i in range(2))
    m = Matrix((u * 0.97 ** torch.arange(60).double()) @ v.T)
    angles = [
        torch.sin(principal_angles(top_singular(m, 5, oversample=o, max_iter=10, tol=1e-15).v, v.T[:5])).max()
        for o in (0, 5, 15)
    ]
    assert angles[0] > 2 * angles[1] > 4 * angles[2]


@pytest.mark.parametrize("bad", [{"k": 0}, {"k": 9}, {"k": 1, "oversample": -1}, {"k": 1, "tol": 0.0}])
def test_impossible_requests(bad):
    with pytest.raises(InvalidDirection, match="out of range"):
        top_singular(Matrix(torch.eye(8).double()), **bad)


def test_zero_and_nan_maps_are_refused():
    with pytest.raises(InvalidDirection, match="the map is zero"):
        top_singular(Matrix(torch.zeros(4, 4).double()), 1)
    with pytest.raises(InvalidDirection, match="NaN"):
        top_singular(Matrix(torch.full((4, 4), math.nan).double()), 1)


# Restrictions


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_and_null_space_against_matrices(seed):
    m = normal(seed, 12, 18)
    out_mask, in_mask = (normal(seed + 1, 12) > 0).double(), (normal(seed + 2, 18) > -0.5).double()
    null = torch.linalg.qr((normal(seed + 3, 18, 3).T * in_mask).T).Q.T
    op = Restricted(Matrix(m), out_mask=out_mask, in_mask=in_mask, null=null)
    exact = out_mask[:, None] * (m @ (torch.eye(18).double() - null.T @ null)) * in_mask
    torch.testing.assert_close(dense(op), exact)
    torch.testing.assert_close(op.vjp(torch.eye(12).double()), exact)


@pytest.mark.parametrize("seed", SEEDS)
def test_v27_a_larger_null_space_makes_the_response_more_local(seed):
    model = PipelineEps(small_pipeline())
    point = Point(normal(seed, 1, *model.sample_shape, dtype=torch.float32), 0.5, "a red star")
    whole = jacobian(model, point, batch=32)
    mask = torch.zeros(4, 4)
    mask[1:3, 2:4] = 1
    inside = spatial_weights(mask, whole.out_shape)
    op = Matrix(dense(whole))
    ratios = []
    rest = top_singular(Restricted(op, out_mask=1 - inside), 30, max_iter=10, tol=1e-3)
    for rank in (0, 5, 15, 30):
        v = top_singular(Restricted(op, out_mask=inside, null=rest.v[:rank] if rank else None), 1).v
        response = op.jvp(v)[0].double()
        ratios.append(float((response * inside).norm() / (response * (1 - inside)).norm()))
    assert all(a < b for a, b in pairwise(ratios))


def test_spatial_weights():
    mask = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    assert torch.equal(spatial_weights(mask, (3, 2, 2)), mask.flatten().repeat(3).double())
    assert torch.equal(spatial_weights(mask.flatten(), (4, 2)), mask.flatten().repeat_interleave(2).double())
    assert torch.equal(spatial_weights(mask, (2, 2)), mask.flatten().double())
    with pytest.raises(InvalidDirection, match="fits no tensor"):
        spatial_weights(mask, (3, 4, 4))


# Points and places


def test_a_trajectory_holds_the_denoisers_inputs(tiny_pipe):
    model = PipelineEps(tiny_pipe)
    points = trajectory(model, "a red star", 3, steps=3, guidance=2.0)
    assert [p.step for p in points] == [0, 1, 2] and points[0].log_snr == -math.inf
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(points[0].z, noise)
    again = trajectory(model, "a red star", 3, steps=3, guidance=2.0)
    assert [p.record() for p in again] == [p.record() for p in points]
    assert points[1].record() != points[2].record()
    x0 = x0_hat(model, points[2].z, points[2].log_snr, "a red star")
    torch.testing.assert_close(jacobian(model, points[2], batch=3).value, x0, rtol=1e-4, atol=1e-5)


def test_what_is_added_to_a_prompt_is_not_kept_as_the_prompt(tiny_pipe):
    """Also where the model meets the prompts for the first time while something is added."""
    new, known = PipelineEps(tiny_pipe), PipelineEps(tiny_pipe)
    z, d, prompts = normal(0, 2, *new.sample_shape).float(), normal(1, 2, 1, 16).float(), ["a red star", "a blue moon"]
    plain, moved = known.eps(z, 0.5, prompts), []
    for model in (new, known):
        with added(model, site_of(model, "unet:prompt"), d):
            moved.append(model.eps(z, 0.5, prompts))
        assert torch.equal(model.eps(z, 0.5, prompts), plain)
    assert torch.equal(*moved) and not torch.equal(moved[0], plain)


def test_impossible_places_and_points(tiny_pipe):
    model = PipelineEps(tiny_pipe)
    point = Point(torch.zeros(1, *model.sample_shape), 0.5)
    with pytest.raises(InvalidDirection, match="the target lies before the source"):
        jacobian(model, point, "up_blocks.0", "mid_block")
    with pytest.raises(InvalidDirection, match="only be a target"):
        jacobian(model, point, X0, "mid_block")
    with pytest.raises(UnknownSite):
        jacobian(model, point, "mid_blok", EPS)
    with pytest.raises(InvalidDirection, match="has no sites inside"):
        jacobian(LowRankMixture.random(2, 2, 6), Point(torch.zeros(1, 6), 0.0), "mid_block", EPS)
    with pytest.raises(InvalidDirection, match="a point"):
        Jacobian(lambda x: x, torch.zeros(2, 3))
    with pytest.raises(InvalidDirection, match="expected"):
        jacobian(model, point).jvp(torch.zeros(1, 3))
