"""probe.information against closed-form models: every quantity has a number that is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from information_world import WIDE, Channel, Points, channel_table, one_node
from scipy.stats import norm
from seeded import SEEDS, gen, normal

from probe.information import (
    Column,
    GapCurve,
    GaussianControl,
    Nodes,
    adaptive_nodes,
    class_columns,
    classify,
    information,
    likelihood,
    measure,
    pid,
)
from probe.information.mutual import Form
from probe.model import score
from probe.model.analytic import GaussianMixture


def rmse(errors: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


# Gaussian channels


@pytest.mark.parametrize(("n", "repeats", "orthogonal", "standard"), [(1000, 24, 0.17, 0.34), (10_000, 6, 0.06, 0.12)])
def test_v2_error_of_both_forms(n, repeats, orthogonal, standard):
    found: dict[Form, list[float]] = {"orthogonal": [], "standard": []}
    for k in range(repeats):
        channel = Channel.random(SEEDS[k % 3])
        table = channel_table(channel, n, k)
        for form, errors in found.items():
            errors.append(information(table, "y", form=form).mean - channel.information())
    assert rmse(found["orthogonal"]) < orthogonal
    assert rmse(found["standard"]) < standard


def test_v2_error_at_a_hundred_thousand_draws():
    errors: dict[Form, list[float]] = {"orthogonal": [], "standard": []}
    for seed in SEEDS:
        channel = Channel.random(seed)
        table = channel_table(channel, 100_000, seed)
        for form, found in errors.items():
            found.append(information(table, "y", form=form).mean - channel.information())
    assert rmse(errors["orthogonal"]) < 0.012
    assert rmse(errors["standard"]) < 0.036


@pytest.mark.parametrize("seed", SEEDS)
def test_v4_only_the_standard_form_is_the_log_likelihood_ratio_of_one_image(seed):
    channel = Channel.random(seed)
    x, y = channel.draw(300, seed)
    table = measure(channel, x, channel.columns(y, y=[0, 1, 2]), Nodes.logistic(400, *WIDE), seed=seed, batch=4096)
    exact = channel.pointwise(x, y)
    standard, orthogonal = (information(table, "y", form=f) for f in ("standard", "orthogonal"))
    # 400 nodes are a hundredth of the table's 40,000: ten times its tolerance for single images.
    assert np.abs(standard.pointwise - exact).max() < 1.5
    assert np.corrcoef(standard.pointwise, exact)[0, 1] > 0.98
    assert abs(np.corrcoef(orthogonal.pointwise, exact)[0, 1]) < 0.2
    assert orthogonal.pointwise.min() > 0 > standard.pointwise.min()
    inside = np.abs(standard.pointwise - exact) < 2 * standard.pointwise_error
    assert inside.mean() > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_v4_a_single_image_to_a_tenth_of_a_nat(seed):
    channel = Channel.random(seed)
    x, y = channel.draw(1, seed)
    table = measure(channel, x, channel.columns(y, y=[0, 1, 2]), Nodes.logistic(40_000, *WIDE), seed=seed, batch=8192)
    assert abs(information(table, "y").mean - channel.pointwise(x, y)[0]) < 0.15


@pytest.mark.parametrize("seed", SEEDS)
def test_v5_both_forms_agree_at_every_coordinate(seed):
    table = channel_table(Channel.random(seed), 2000, seed, Nodes.logistic(400, *WIDE, seed=seed))
    standard, orthogonal = (information(table, "y", form=f).pixels.mean(0) for f in ("standard", "orthogonal"))
    assert standard.shape == (8,)
    assert np.abs(standard - orthogonal).max() < 0.08


@pytest.mark.parametrize("seed", SEEDS)
def test_v9_v10_conditional_information_and_pid_of_a_scalar_gaussian(seed):
    one = torch.ones(2, 1, dtype=torch.float64)
    channel = Channel(one[:1], one, torch.tensor([0.5, 1.0], dtype=torch.float64))
    rows = {"word:a": [0], "word:b": [1], "pair:a+b": [0, 1]}
    exact = {"word:a": 0.54931, "word:b": 0.34657, "pair:a+b": 0.69315}
    table = channel_table(channel, 10_000, seed, Nodes.logistic(2, *WIDE, placement="dealt", seed=seed), **rows)
    found = {c: information(table, c, form="orthogonal").mean for c in rows}
    for name, value in exact.items():
        assert abs(found[name] - value) < 0.025, name
    given = information(table, "pair:a+b", given="word:b", form="orthogonal").mean
    assert abs(given - 0.34657) < 0.025
    assert abs(found["pair:a+b"] - found["word:b"] - given) < 0.02
    atoms = pid(table, "a", "b").image
    for value, expected in zip(atoms, (0.34657, 0.20273, 0.0, 0.14384), strict=True):
        assert abs(float(value) - expected) < 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_v12_the_sde_form_of_minde_gives_the_same_information(seed):
    """1/2 INT g^2 E |s(a_t) - s(a_t | y)|^2 dt over a variance-preserving SDE, beta from 0.1 to 20, t uniform."""
    channel = Channel.random(seed, information=0.992)
    n = 20_000
    x, y = channel.draw(n, seed)
    given = list(y)
    u = (np.arange(n) + np.random.default_rng(seed).random(n)) / n
    t = torch.from_numpy(np.exp(np.log(1e-5) * (1 - u)))  # uniform in log t
    beta = 0.1 + 19.9 * t
    level = -torch.log(torch.expm1(0.1 * t + 9.95 * t**2))
    z = torch.sigmoid(level).sqrt()[:, None] * x + torch.sigmoid(-level).sqrt()[:, None] * normal(seed + 9, n, 8)
    off = score(channel, z, level) - score(channel, z, level, given)
    terms = 0.5 * (beta * (off**2).sum(1) * t * -math.log(1e-5)).numpy()
    nodes = replace(one_node(seed), window=(float(level.min()), float(level.max())))
    info = information(measure(channel, x, channel.columns(y, y=[0, 1, 2]), nodes, batch=8192), "y", form="orthogonal")
    error = math.hypot(terms.std() / math.sqrt(n), info.interval(n=100).error)
    assert error < 0.03
    assert abs(terms.mean() - info.mean) < 3 * error


@pytest.mark.parametrize("seed", SEEDS)
def test_v16_independence_gives_nothing(seed):
    channel = Channel.random(seed)
    deaf = Channel(channel.s, torch.zeros_like(channel.a), channel.v)
    orthogonal = information(channel_table(deaf, 500, seed), "y", form="orthogonal")
    assert np.all(orthogonal.terms == 0)
    # Whatever is said about it does not belong to the image: the standard form of an informative channel is negative.
    x, y = channel.draw(2000, seed)
    table = measure(channel, x, channel.columns(y.roll(1, 0), y=[0, 1, 2]), one_node(seed), batch=8192)
    assert information(table, "y").interval(n=200).high < 0
    same = measure(deaf, x, channel.columns(y, y=[0, 1, 2]), one_node(seed), batch=8192)
    low, high = information(same, "y").interval(n=200)[1:3]
    assert low <= 0 <= high


@pytest.mark.parametrize("seed", SEEDS)
def test_v17_shifts_and_rotations_change_nothing(seed):
    channel = Channel.random(seed)
    nodes = Nodes.logistic(20, *WIDE, seed=seed)
    x, y = channel.draw(20, seed)
    first = measure(channel, x, channel.columns(y, y=[0, 1, 2]), nodes, seed=seed)
    shift = normal(seed + 3, 8)
    moved = Channel(channel.s, channel.a, channel.v, shift)
    second = measure(moved, x + shift, moved.columns(y + shift @ channel.a.T, y=[0, 1, 2]), nodes, seed=seed)
    for form in ("standard", "orthogonal"):
        a, b = (information(t, "y", form=form).terms for t in (first, second))
        assert np.abs(a - b).max() < 1e-6 * np.abs(a).max()

    def expected(c: Channel, basis: torch.Tensor) -> float:
        """Information from the denoisers alone: they are linear, so that the mean gap is a trace."""
        total = 0.0
        x_cov, joint = c.s, torch.cat([c.s, c.s @ c.a.T], 1)
        y_cov = c.a @ c.s @ c.a.T + c.v.diag()
        cov = torch.cat([joint, torch.cat([joint[:, len(c.s) :].T, y_cov], 1)])
        levels, weights = Nodes.logistic(60, *WIDE, placement="gauss").place(1)
        zero = torch.zeros(len(c.s), len(c.v), dtype=torch.float64)
        for a, w in zip(levels[0], weights[0], strict=True):
            alpha, sigma = 1 / math.sqrt(1 + math.exp(-a)), 1 / math.sqrt(1 + math.exp(a))
            off = (c.eps(basis, a, None) - c.eps(basis, a, list(zero))).T  # (d, d), columns are responses
            eye = torch.eye(len(c.v), dtype=torch.float64)
            by_y = -c.eps(torch.zeros(len(c.v), len(c.s), dtype=torch.float64), a, list(eye)).T
            cov_z = alpha**2 * x_cov + sigma**2 * torch.eye(len(c.s), dtype=torch.float64)
            cross = alpha * cov[: len(c.s), len(c.s) :]
            full = off @ cov_z @ off.T + by_y @ y_cov @ by_y.T + off @ cross @ by_y.T + by_y @ cross.T @ off.T
            total += 0.5 * w * float(full.trace())
        return total

    rotation = torch.linalg.qr(normal(seed + 4, 8, 8)).Q
    turned = Channel(rotation @ channel.s @ rotation.T, channel.a @ rotation.T, channel.v)
    eye = torch.eye(8, dtype=torch.float64)
    before = expected(channel, eye)
    assert abs(before - expected(turned, eye)) < 1e-6
    assert before == pytest.approx(channel.information(), abs=1e-3)


# Labels


@pytest.mark.parametrize(("variance", "exact"), [(4.0, 0.111421), (1.0, 0.336831), (0.25, 0.632720)])
def test_v6_bpsk_in_noise(variance, exact):
    model = Points.labelled(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), math.sqrt(variance))
    v = np.linspace(-12, 12, 2001)  # trapezoidal rule over the noisy sample, exact for smooth tails

    def gap(levels: np.ndarray) -> np.ndarray:
        out = []
        for a in levels:
            alpha, sigma = 1 / math.sqrt(1 + math.exp(-a)), 1 / math.sqrt(1 + math.exp(a))
            sd = math.sqrt(alpha**2 * variance + sigma**2)
            z = torch.from_numpy(alpha + sd * v)[:, None]  # by symmetry, given +1
            off = model.eps(z, a) - model.eps(z, a, [1])
            out.append(float((off[:, 0] ** 2).numpy() @ norm.pdf(v)) * (v[1] - v[0]))
        return np.array(out)

    a, w = Nodes.logistic(300, *WIDE, placement="gauss").place(1)
    assert abs(0.5 * float(w[0] @ gap(a[0])) - exact) < 1e-5
    for seed in SEEDS:  # one run of 10,000 draws has a standard error of 0.018 at most
        x, labels = model.draw(10_000, seed)

        def columns(n: int, labels: torch.Tensor = labels) -> list[Column]:
            return [Column("empty"), Column("label", labels[:n].tolist())]

        nodes = adaptive_nodes(model, x[:64], columns(64), 1, placement="dealt", seed=seed, batch=8192)
        table = measure(model, x, columns(10_000), nodes, seed=seed, batch=8192)
        assert abs(information(table, "label", form="orthogonal").mean - exact) < 0.03


@lru_cache
def plane() -> GaussianMixture:
    """Three Gaussians in the plane, placed and scaled so that they have the entropies of the table."""
    angle = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    means = 1.51834387 * torch.stack([angle.cos(), angle.sin()], 1)
    variances = 0.92157367 * torch.tensor([[0.3, 0.8], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64)
    return GaussianMixture(means, torch.diag_embed(variances))


H, H_GIVEN, MIXED = 3.04177, 2.04945, 0.99232  # nats


def test_v7_entropies_differ_by_the_quadrature_of_the_gap():
    """Every integral on a grid: H(x) - H(x | y) and 1/2 INT E|eps - eps_y|^2 are one number."""
    model = plane()
    axis = torch.linspace(-6, 6, 81, dtype=torch.float64)
    grid, cell = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    log_p = model.log_density(grid, 60.0)
    h = -float((log_p.exp() * log_p).sum()) * cell
    given = float((0.5 * torch.logdet(2 * math.pi * math.e * model.covariances)).mean())
    assert h == pytest.approx(H, abs=1e-4) and given == pytest.approx(H_GIVEN, abs=1e-4)
    level, weight = Nodes.logistic(60, 0.0, 1.5, placement="gauss").place(1)
    total = 0.0
    for a, w in zip(level[0], weight[0], strict=True):
        p = model.log_density(grid, a).exp()[:, None] * model.label_posterior(grid, a)
        each = torch.stack([model.eps(grid, a, k) for k in range(3)], 1)
        off = each - model.eps(grid, a)[:, None]
        total += 0.5 * w * cell * float((p * (off**2).sum(2)).sum())
    assert total == pytest.approx(h - given, abs=1e-4)
    assert total == pytest.approx(MIXED, abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_v7_v8_information_and_entropy_of_a_mixture(seed):
    """10,000 draws; the draw of x itself adds 0.01 to the error of the entropy, which the interval includes."""
    model = plane()
    x, labels = model.sample(10_000, gen(seed))
    control = GaussianControl.fit(x)
    columns = [Column("empty"), Column("label", labels.tolist()), Column("control", model=control)]
    for clip in (3.0, 5.0, 8.0):
        nodes = Nodes.logistic(1, 1.0, 2.0, clip, placement="dealt", seed=seed)
        table = measure(model, x, columns, nodes, seed=seed, batch=8192)
        assert abs(information(table, "label", form="orthogonal").mean - MIXED) < 0.05
        found = likelihood(table, control=control)
        error = found.interval(n=200).error
        assert error < 0.065
        assert abs(found.mean - H) < 2.5 * error
        difference = found.nats - likelihood(table, "label", control=control).nats
        assert np.abs(difference - information(table, "label").pointwise).max() < 1e-4 * np.abs(difference).max()
    plain = likelihood(table)
    assert plain.interval(n=200).error > 5 * found.interval(n=200).error
    assert abs(plain.mean - H) < 5 * plain.interval(n=200).error
    assert np.allclose(found.bits_per_dimension, found.nats / (2 * math.log(2)))


@pytest.mark.parametrize("seed", SEEDS)
def test_likelihood_of_a_gaussian_under_its_own_control_is_exact(seed):
    x = normal(seed, 40, 3) @ normal(seed + 1, 3, 3)
    control = GaussianControl.fit(x)
    table = measure(control, x, [Column("empty"), Column("control", model=control)], Nodes.logistic(3, *WIDE))
    found = likelihood(table, control=control)
    exact = torch.distributions.MultivariateNormal(control.mean, torch.cov(x.T)).log_prob(x)
    assert np.allclose(found.nats, -exact.numpy(), rtol=1e-9)
    diagonal = GaussianControl.fit(x[:5])
    exact = torch.distributions.Normal(diagonal.mean, x[:5].std(0)).log_prob(x).sum(1)
    assert np.allclose(diagonal.log_density(x).numpy(), exact.numpy(), rtol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_v14_the_classifier_has_the_exact_posterior_and_needs_shared_noise(seed):
    weights = [0.5, 0.3, 0.2]
    model = GaussianMixture(plane().means, plane().covariances, weights)
    x, labels = model.sample(1000, gen(seed))
    exact = model.label_posterior(x, 60.0).numpy()
    names = ["0", "1", "2"]
    prior = dict(zip(names, weights, strict=True))
    columns = class_columns(1000, {name: k for k, name in enumerate(names)})
    nodes = Nodes.logistic(100, *WIDE, seed=seed)
    table = measure(model, x, columns, nodes, seed=seed, batch=8192)
    found = classify(table, names, prior)
    agree = (found.best == exact.argmax(1)).mean()
    assert agree > 0.98
    assert 0.5 * np.abs(found.posterior - exact).sum(1).mean() < 0.03
    entropy = -(exact * np.log(np.maximum(exact, 1e-300))).sum(1).mean()
    assert abs(found.entropy.mean() - entropy) < 0.02
    assert found.information == pytest.approx(found.prior_entropy - found.entropy.mean())
    assert found.accuracy([names[k] for k in labels]) == pytest.approx(
        (exact.argmax(1) == labels.numpy()).mean(), abs=0.02
    )
    apart = [measure(model, x, [c], nodes, seed=seed + 50 + k, batch=8192) for k, c in enumerate(columns)]
    independent = replace(table, error=np.concatenate([t.error for t in apart], -1))
    assert (classify(independent, names, prior).best == exact.argmax(1)).mean() < agree - 0.02


def test_information_by_step_adds_up_to_the_whole():
    channel = Channel.random(0)
    for nodes in (Nodes.logistic(40, *WIDE), Nodes.logistic(4, *WIDE, placement="dealt")):
        found = information(channel_table(channel, 500, 0, nodes), "y", form="orthogonal")
        curve: GapCurve = found.curve
        assert 0.5 * float(curve.gap @ curve.width) == pytest.approx(found.mean, rel=1e-9)
        assert curve.width.sum() == pytest.approx(32.0)
        at = curve.log_snr[(curve.gap * curve.width).cumsum() > found.mean][0]
        assert abs(at - 1.5) < 2.5  # half of the information is in by here
