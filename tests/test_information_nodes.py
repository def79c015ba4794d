"""probe.information: where nodes are put, what their weights integrate, what a window leaves out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from information_world import Channel
from seeded import SEEDS, normal

from probe.errors import InvalidRequest
from probe.information import (
    GapCurve,
    Nodes,
    TruncatedWindow,
    adaptive_nodes,
    check_window,
    information,
    measure,
)
from probe.information.nodes import UNIFORM_SHARE, location_scale

SD = (-5.36, 7.07)  # levels of the scaled-linear schedule of Stable Diffusion
PLACEMENTS = ["gauss", "jitter", "dealt"]


def quadrature(nodes: Nodes, f) -> float:
    a, w = nodes.place(1)
    return 0.5 * float((w[0] * f(a[0])).sum())


# Weights


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("n", [1, 2, 7, 100, 1000])
def test_v13_weights_integrate_constants_exactly(n, placement, seed):
    for nodes in (
        Nodes(n, (-5.36, 7.07), placement=placement, seed=seed),
        *(Nodes.logistic(n, 1.0, 2.0, clip, placement=placement, seed=seed) for clip in (3.0, 4.0, 8.0)),
    ):
        for n_images in (1, 5):
            a, w = nodes.place(n_images)
            assert a.shape == w.shape == (n_images, n)
            lo, hi = nodes.window
            assert w.sum(1).mean() == pytest.approx(hi - lo, rel=1e-12)
            assert (w > 0).all() and (a >= lo).all() and (a <= hi).all() and (np.diff(a, axis=1) > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_jittered_nodes_are_unbiased_and_gauss_nodes_integrate_cubics_exactly(seed):
    def cubic(a):
        return a**3 - 2.0 * a**2 + 3.0

    lo, hi = -3.0, 5.0
    exact = 0.5 * ((hi**4 - lo**4) / 4 - 2 * (hi**3 - lo**3) / 3 + 3 * (hi - lo))
    base = {"n": 8, "window": (lo, hi), "location": 1.0, "scale": 1.0}
    assert quadrature(Nodes(**base, placement="gauss"), cubic) == pytest.approx(exact, rel=1e-12)
    drawn = [quadrature(Nodes(**base, seed=400 * seed + k), cubic) for k in range(400)]
    assert abs(np.mean(drawn) - exact) < 4 * np.std(drawn) / 20


@pytest.mark.parametrize("seed", SEEDS)
def test_dealt_nodes_of_all_images_fill_every_cell_once(seed):
    nodes = Nodes.logistic(4, 0.0, 1.0, placement="dealt", seed=seed)
    a, w = nodes.place(25)
    edges = nodes.edges(100)
    assert np.array_equal(np.searchsorted(edges, np.sort(a.ravel())), np.arange(1, 101))
    assert np.allclose(np.sort(w.ravel()), np.sort(25 * np.diff(edges)))


def test_cells_are_equal_shares_of_the_placement_distribution():
    nodes = Nodes.logistic(200, -2.0, 0.5, 10.0)
    edges = nodes.edges()
    lo, hi = nodes.window
    cut = 1 / (1 + np.exp(-(edges + 2.0) / 0.5))
    share = (1 - UNIFORM_SHARE) * (cut - cut[0]) / (cut[-1] - cut[0]) + UNIFORM_SHARE * (edges - lo) / (hi - lo)
    assert np.allclose(share, np.linspace(0, 1, 201), atol=1e-6)
    assert np.diff(edges).max() <= (hi - lo) / (200 * UNIFORM_SHARE) * (1 + 1e-6)


# Quadrature and windows on a Gaussian channel


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "tolerance"), [(50, 1e-3), (100, 2e-4)])
def test_v1_quadrature_of_the_exact_gap(seed, n, tolerance):
    channel = Channel.random(seed)
    assert channel.information() == pytest.approx(2.76957, abs=1e-6)
    nodes = Nodes.logistic(n, 1.0, 2.0, placement="gauss")
    assert abs(quadrature(nodes, channel.gap) - channel.information()) < tolerance


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("window", "bias"), [((-5.0, 7.0), -0.0254), ((-7.0, 9.0), -0.0035), ((-10.0, 10.0), -0.0005), (SD, -0.0196)]
)
def test_v3_a_window_misses_what_the_formula_says_and_the_estimate_finds_it(seed, window, bias):
    channel = Channel.windowed(seed)
    assert channel.information() == pytest.approx(2.76957, abs=1e-5)
    inside = channel.within(*window)
    assert quadrature(Nodes(2000, window, placement="gauss"), channel.gap) == pytest.approx(inside, abs=1e-6)
    assert inside - channel.information() == pytest.approx(bias, abs=5e-5)
    a, w = Nodes(100, window, placement="gauss").place(1)
    found = check_window(GapCurve(a[0], channel.gap(a[0]), w[0]), window)
    assert found.missing == pytest.approx(channel.information() - inside, rel=0.15)
    assert not found.truncated


@pytest.mark.parametrize("seed", SEEDS)
def test_a_truncated_window_warns_with_the_missing_mass(seed):
    channel = Channel.random(seed)
    x, y = channel.draw(50, seed)
    table = measure(channel, x, channel.columns(y, all=[0, 1, 2]), Nodes(60, (-1.0, 12.0)), seed=seed)
    with pytest.warns(TruncatedWindow, match=r"information of 'all' given 'empty': window truncated. At log SNR -1 "):
        found = information(table, "all")
    missing = channel.information() - channel.within(-1.0, 12.0)
    assert found.window.missing_low == pytest.approx(missing, rel=0.5)
    assert found.window.missing_high < 0.1 * missing


@pytest.mark.parametrize("noise", [1e-4, 1e-6])
def test_adaptive_nodes_remove_the_bias_of_strong_dependence(noise):
    one = torch.eye(1, dtype=torch.float64)
    channel = Channel(one, one, torch.tensor([noise], dtype=torch.float64))
    x, y = channel.draw(20, 0)
    columns = channel.columns(y, y=[0])
    exact = channel.information()
    nodes = adaptive_nodes(channel, x, columns, 100, placement="gauss")
    assert abs(quadrature(nodes, channel.gap) - exact) < 0.02
    assert quadrature(Nodes(100, (-5.0, 7.0), placement="gauss"), channel.gap) < exact - 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_location_and_scale_are_median_and_half_the_interquartile_range(seed):
    centre, width = normal(seed, 2).tolist()
    width = 1.0 + abs(width)
    a, w = Nodes(400, (-40.0, 40.0), placement="gauss").place(1)
    density = np.exp(-np.abs(a[0] - centre) / width)  # Laplace: quartiles at +- width log 2
    location, scale = location_scale(GapCurve(a[0], density, w[0]))
    assert location == pytest.approx(centre, abs=0.02)
    assert scale == pytest.approx(width * math.log(2), rel=0.02)


# Requests


def test_nodes_stay_inside_the_models_range_and_record_it():
    class Narrow(Channel):
        log_snr_range = (-5.0, 6.0)

    channel = Channel.random(0)
    narrow = Narrow(channel.s, channel.a, channel.v)
    nodes = Nodes.logistic(10, 1.0, 2.0, model=narrow)
    assert nodes.window == nodes.model_range == (-5.0, 6.0)
    assert Nodes.from_record(nodes.record()) == nodes
    x, y = narrow.draw(2, 0)
    with pytest.raises(InvalidRequest, match=r"nodes reach from -15 to 17, but Narrow knows log SNR from -5 to 6"):
        measure(narrow, x, narrow.columns(y), Nodes.logistic(10, 1.0, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0; expected a whole number"),
        ({"window": (3.0, 3.0)}, r"window \(3, 3\); expected two finite levels"),
        ({"window": (-math.inf, 3.0)}, "expected two finite levels"),
        ({"scale": None}, "give both"),
        ({"scale": -1.0}, "above zero"),
        ({"location": 2.5}, r"location 2.5 lies outside the window \(-1, 2\)"),
        ({"placement": "random"}, "expected one of gauss, jitter, dealt"),
        ({"model_range": (0.0, 1.0)}, r"leaves the model's own range \(0, 1\)"),
    ],
)
def test_nodes_refuse_what_makes_no_sense(change, message):
    with pytest.raises(InvalidRequest, match=message):
        Nodes(**({"n": 5, "window": (-1.0, 2.0), "location": 0.0, "scale": 1.0} | change))


def test_a_gap_of_zero_places_nothing():
    with pytest.raises(InvalidRequest, match="nowhere above zero"):
        Nodes.fitted(5, GapCurve(np.arange(3.0), np.zeros(3), np.ones(3)))
