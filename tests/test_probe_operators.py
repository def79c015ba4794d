"""probe.directions: finders that need a model, on closed forms with known answers (V24-V27) and on small networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from seeded import SEEDS, normal

from probe.directions import (
    Asymmetry,
    Direction,
    HJacobian,
    JacobianSpectrum,
    LocalEdit,
    Point,
    Pullback,
    ScoreRank,
    TraceDimension,
    jacobian,
    principal_angles,
)
from probe.directions.points import added, site_of
from probe.directions.subspace import dense
from probe.errors import InvalidDirection, NotFitted, UnknownSite
from probe.model import PipelineEps, noised
from probe.model.analytic import Gaussian, GaussianMixture, LowRankMixture, Sphere


def logit(abar: float) -> float:
    return math.log(abar / (1 - abar))


@pytest.fixture(scope="module")
def network() -> tuple[PipelineEps, list[Point]]:
    """The tiny pipeline at 4 x 4 x 4 in float64, and two points."""
    pipe = build_tiny_pipeline()
    pipe.unet.register_to_config(sample_size=4)
    pipe.unet.double()
    pipe.text_encoder.double()
    model = PipelineEps(pipe)
    return model, [
        Point(normal(i, 1, *model.sample_shape), a, "a red star", i, t)
        for i, (a, t) in enumerate([(-1, 600), (1, 300)])
    ]


# Inside the network


def test_h_directions_move_the_target_as_their_singular_values_say(network):
    model, points = network
    found = HJacobian(site="mid_block", k=3, batch=16, max_iter=60, tol=1e-8).fit(model, points)
    assert found.direction_.site == "unet.mid_block:out" and found.direction_.basis.shape == (2, 3, 4, 16)
    assert found.direction_.timesteps == (600, 300) and found.direction_.frame == "local"
    site = site_of(model, "mid_block")
    for row, point in enumerate(points):
        base = model.eps(point.z, point.log_snr, point.cond)
        for i in range(3):
            d = 1e-4 * found.direction_.basis[row, i].T.reshape(1, 16, 2, 2).double()
            with added(model, site, d), torch.no_grad():
                moved = model.eps(point.z, point.log_snr, point.cond) - base
            assert float(moved.norm() / 1e-4) == pytest.approx(found.singular_values_[row, i], rel=1e-3)
    products = (found.direction_.flat[0] * found.direction_.flat[1]).sum(-1)
    assert (products >= 0).all()
    assert all(q["residual"] < 0.02 for q in found.direction_.provenance["quality"])


def test_a_mask_asks_for_one_part_of_the_target_and_is_part_of_the_hash(network):
    model, points = network
    mask = torch.zeros(4, 4)
    mask[0, :2] = 1
    options = {"site": "mid_block", "k": 1, "batch": 16, "max_iter": 10, "target": "sampler:x0"}
    masked = HJacobian(mask=mask, **options).fit(model, points[:1])
    whole = HJacobian(**options).fit(model, points[:1])
    op = jacobian(model, points[0], "mid_block", batch=2)
    vectors = torch.stack([f.direction_.basis[0, 0].T.flatten().double() for f in (masked, whole)])
    inside = (op.jvp(vectors).unflatten(1, (4, 4, 4)) * mask).flatten(1).norm(dim=1)
    assert inside[0] > inside[1] and masked.singular_values_[0, 0] == pytest.approx(float(inside[0]), rel=1e-2)
    other = HJacobian(mask=1 - mask, **options).fit(model, points[:1])
    records = [f.direction_.provenance["parameters"]["mask"] for f in (masked, whole, other)]
    assert records[1] is None and records[0] != records[2]


# Pullback


def test_pullback_pairs_both_sides(network):
    model, points = network
    found = Pullback(feature="mid_block", k=3, batch=16, max_iter=60, tol=1e-8).fit(model, points)
    assert found.direction_.site == "sampler:x_t" and found.direction_.basis.shape == (2, 3, 16, 4)
    assert found.feature_direction_.site == "unet.mid_block:out" and found.direction_.steps == (0, 1)
    for row, point in enumerate(points):
        op = jacobian(model, point, "sampler:x_t", "mid_block", batch=3)
        v = found.direction_.basis[row].transpose(1, 2).flatten(1).double()
        u = found.feature_direction_.basis[row].transpose(1, 2).flatten(1).double()
        s = torch.from_numpy(found.singular_values_[row])
        assert (op.jvp(v) - s[:, None] * u).norm() / s[0] < 0.02  # also the signs of the two sides
    back = found.transport(found.feature_direction_)
    torch.testing.assert_close(back.flat, found.direction_.flat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_pullback_finds_the_subspace_and_carries_directions_within_it(seed):
    """At little noise the leading vectors of a mixture of subspaces are the sample's own subspace."""
    model = LowRankMixture.random(3, 4, 24, torch.Generator().manual_seed(seed))
    x, labels = model.sample(40, torch.Generator().manual_seed(seed))
    own = (labels == labels[0]).nonzero().flatten()[:2]
    z = noised(x, normal(seed + 1, *x.shape), logit(0.99))
    first, second = (
        Pullback(feature="sampler:x0", k=4, tol=1e-8).fit(model, [Point(z[i : i + 1], logit(0.99))]) for i in own
    )
    basis = model.bases[labels[0]].T
    assert torch.sin(principal_angles(first.direction_.flat[0], basis)).max() < 0.05
    moved = second.transport(first.feature_direction_[0])
    assert float(moved.flat.norm()) > 0.99
    assert (moved.flat[0] @ basis.T).norm() > 0.99
    assert abs(float(moved.cosine(first.direction_[0])[0, 0, 0])) > 0.99  # a flat manifold: nothing turns on the way


# Local edits


@pytest.mark.parametrize("seed", SEEDS)
def test_a_local_edit_of_independent_blocks_stays_in_its_block(seed):
    blocks = [normal(seed + i, 5, 5) for i in range(2)]
    model = Gaussian(torch.zeros(10), torch.block_diag(*(b @ b.T for b in blocks)))
    mask = torch.tensor([1.0] * 5 + [0.0] * 5)
    point = Point(normal(seed, 1, 10), 0.5)
    found = LocalEdit(mask=mask, k=2, null_rank=0, tol=1e-10).fit(model, [point])
    assert found.locality_.min() > 1e6
    j = dense(jacobian(model, point, batch=10))
    np.testing.assert_allclose(found.singular_values_[0], torch.linalg.svdvals(j[:5])[:2], rtol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_v27_a_larger_null_space_is_more_local(seed):
    root = normal(seed, 12, 12)
    model = Gaussian(torch.zeros(12), root @ root.T)
    mask = torch.tensor([1.0] * 4 + [0.0] * 8)
    ratios = [
        LocalEdit(mask=mask, null_rank=r, tol=1e-9, max_iter=300).fit(model, [Point(normal(seed, 1, 12), 0.0)])
        for r in (0, 2, 4, 8)
    ]
    found = [float(r.locality_[0, 0]) for r in ratios]
    assert found[0] < found[1] < found[2] < found[3] and found[3] > 1e4  # eight outputs outside, all of them held
    assert ratios[1].direction_.provenance["locality"][0][0] == pytest.approx(found[1])


@pytest.mark.parametrize("bad", [torch.zeros(12), torch.ones(12), torch.full((12,), 2.0), torch.ones(3)])
def test_masks_that_say_nothing_are_refused(bad):
    model = Gaussian(torch.zeros(12), torch.eye(12))
    with pytest.raises(InvalidDirection, match="mask"):
        LocalEdit(mask=bad).fit(model, [Point(torch.zeros(1, 12).double(), 0.0)])


# Spectrum


@pytest.mark.parametrize("seed", SEEDS)
def test_v24_rank_of_a_mixture_of_subspaces(seed):
    """K r at much noise, r at little, at every point, but where the noise leaves two subspaces possible.

    Those are points near the origin, where subspaces meet: at abar 0.99 at most six in a thousand, and none at 0.999.
    There the rank lies between, and the estimate still agrees with the dense Jacobian.
    """
    model = LowRankMixture.random(3, 4, 48, torch.Generator().manual_seed(seed))
    x, _ = model.sample(1000, torch.Generator().manual_seed(seed))
    for abar, n, rank, told_apart in ((0.05, 300, 12, 0.0), (0.99, 1000, 4, 0.99), (0.999, 300, 4, 0.0)):
        z = noised(x[:n], normal(seed + 1, n, 48), logit(abar))
        covariance = model.covariance_given(z, logit(abar))  # the Jacobian but for a factor
        energy = torch.linalg.eigvalsh(covariance).flip(1).square()
        exact = (energy.cumsum(1) / energy.sum(1, keepdim=True) >= 0.98).int().argmax(1) + 1
        posterior = model.label_posterior(z, logit(abar)).max(1).values
        known = posterior >= told_apart
        assert (exact[known] == rank).all() and known.double().mean() >= 0.99
        assert (x[:n][~known].norm(dim=1) < 0.75).all()  # of 2 at the root mean square
        chosen = [0, int(posterior.argmin())]
        found = JacobianSpectrum(k=16, tol=1e-6).fit(model, [Point(z[i : i + 1], logit(abar)) for i in chosen]).rank_
        assert found.tolist() == exact[chosen].tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_spectrum_estimates_what_it_does_not_compute(seed):
    root = normal(seed, 20, 20)
    model = Gaussian(torch.zeros(20), root @ root.T / 20)
    point = Point(normal(seed, 1, 20), 1.0)
    s = torch.linalg.svdvals(dense(jacobian(model, point, batch=20)))
    few = JacobianSpectrum(k=5, probes=64, tol=1e-9, max_iter=200).fit(model, [point])
    np.testing.assert_allclose(few.singular_values_[0], s[:5], rtol=1e-6)
    assert abs(few.total_[0] - float(s.square().sum())) < 4 * few.total_se_[0]
    assert np.isnan(few.rank_[0])  # five values do not hold the energy, and it says so
    every = JacobianSpectrum(k=20, tol=1e-9, max_iter=500).fit(model, [point])
    held = s.square().cumsum(0) / s.square().sum() >= 0.98
    assert every.rank_[0] == int(held.int().argmax()) + 1 and every.total_se_[0] < 1e-6


# Dimension


def manifold(kind: str, k: int, seed: int):
    basis = torch.linalg.qr(normal(seed, 100, k + 1)).Q
    if kind == "sphere":
        return Sphere(basis, math.sqrt(k + 1))
    return Gaussian.linear_manifold(basis[:, :k])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["linear", "sphere"])
@pytest.mark.parametrize("k", [5, 10, 50])
def test_v25_score_rank_is_exact_at_little_noise_and_says_when_it_fails(kind, k, seed):
    model = manifold(kind, k, seed)
    x = model.sample(1, torch.Generator().manual_seed(seed))
    found = ScoreRank(noise=(1e-3, 1e-2, 3e-2, 1e-1, 1.0), seed=seed).fit(model, x)
    assert found.dimension_[:4].tolist() == [k] * 4
    assert found.failed_.tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("seed", SEEDS)
def test_v26_trace_dimension_of_a_linear_manifold(seed):
    """The trace is sum l / (l + s^2), within three standard errors of Hutchinson's estimate."""
    basis = torch.linalg.qr(normal(seed, 60, 10)).Q
    scales = torch.linspace(0.5, 2.0, 10).double()
    model = Gaussian(torch.zeros(60), (basis * scales) @ basis.T)
    x = model.sample(1, torch.Generator().manual_seed(seed))
    noise = (0.05, 0.3)
    found = TraceDimension(noise=noise, probes=40, seed=seed).fit(model, x)
    for i, s in enumerate(noise):
        exact = float((scales / (scales + s**2)).sum())
        a = -2 * math.log(s)
        alpha, sigma = (math.sqrt(1 / (1 + math.exp(sign * a))) for sign in (-1, 1))
        j = sigma * dense(jacobian(model, Point(alpha * x, a), target="sampler:eps", batch=60))
        off = j - torch.diag(torch.diagonal(j))  # random signs see the diagonal exactly
        assert abs(found.trace_[i] - exact) < 3 * math.sqrt(2 * float(off.square().sum()) / 40)
        assert found.dimension_se_[i] == pytest.approx(math.sqrt(2 * float(off.square().sum()) / 40), rel=0.5)
        assert found.dimension_[i] - found.trace_[i] == pytest.approx(
            float(model.eps(alpha * x, a).square().sum()), rel=1e-6
        )
    assert abs(found.dimension_[0] - 10) < 1.5


# Asymmetry


class Linear:
    """eps(z) = A z, a field that is no gradient unless A is symmetric."""

    log_snr_range, dtype, device = (-10.0, 10.0), torch.float64, torch.device("cpu")

    def __init__(self, a: torch.Tensor) -> None:
        self.a, self.sample_shape = a, (len(a),)

    def eps(self, z, log_snr, cond=None):
        return z @ self.a.T


@pytest.mark.parametrize("seed", SEEDS)
def test_asymmetry_of_exact_denoisers_is_zero_and_of_others_what_it_is(seed):
    mixture = GaussianMixture(2 * normal(seed, 3, 8), torch.eye(8))
    points = [Point(normal(seed + i, 1, 8), a) for i, a in enumerate((-2.0, 1.0))]
    exact = Asymmetry().fit(mixture, points)
    assert exact.asymmetry_.max() < 1e-9 and exact.log_snr_.tolist() == [-2.0, 1.0]
    a = normal(seed + 5, 8, 8) + 2 * torch.eye(8)
    found = Asymmetry(probes=200, seed=seed).fit(Linear(a), points[:1])
    truth = float((a - a.T).norm() / a.norm())
    assert abs(found.asymmetry_[0] - truth) < 4 * found.asymmetry_se_[0]
    assert 0 < found.asymmetry_se_[0] < 0.1 * truth


# Requests that cannot be met


def test_impossible_requests(network):
    model, points = network
    flat = Gaussian(torch.zeros(4), torch.eye(4))
    with pytest.raises(UnknownSite):
        HJacobian(site="mid_blok").fit(model, points)
    for finder in (HJacobian(site="mid_block"), Pullback(), JacobianSpectrum(), Asymmetry()):
        with pytest.raises(InvalidDirection, match="points"):
            finder.fit(model, [])
    with pytest.raises(InvalidDirection, match="has no sites inside"):
        Pullback(feature="mid_block").fit(flat, [Point(torch.zeros(1, 4).double(), 0.0)])
    for finder, message in [
        (ScoreRank(noise=(0.0,)), "noise 0; this model knows"),
        (ScoreRank(noise=(1e20,)), "noise 1e\\+20"),
        (TraceDimension(probes=1), "at least two"),
    ]:
        with pytest.raises(InvalidDirection, match=message):
            finder.fit(flat, torch.zeros(1, 4).double())
    with pytest.raises(InvalidDirection, match="expected"):
        ScoreRank().fit(flat, torch.zeros(2, 4).double())
    for unfitted in (HJacobian(site="x"), Asymmetry(), ScoreRank()):
        with pytest.raises(NotFitted, match="call fit first"):
            _ = unfitted.direction_
    assert isinstance(Direction("x:out", torch.ones(3)), Direction)
