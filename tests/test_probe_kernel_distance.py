"""The kernel two-sample distance: against its definition, against a closed form, and a null that is what it says."""

from __future__ import annotations

import numpy as np
import pytest

from probe.errors import InvalidRequest
from probe.unlearning import kernel_distance


def test_it_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 3))

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    by_hand = np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs])
    assert kernel_distance(x, y).value == pytest.approx(by_hand, rel=1e-12)


def test_it_estimates_the_closed_form_without_bias():
    # One feature, a ~ N(m, s^2) and b ~ N(0, 1) independent. (ab + 1)^3 = sum_p binom(3, p) a^p b^p, so
    # MMD^2 = sum_p binom(3, p) (E a^p - E b^p)^2.
    m, s, n = 0.3, 1.2, 40
    moments_x = (1.0, m, m**2 + s**2, m**3 + 3 * m * s**2)
    moments_y = (1.0, 0.0, 1.0, 0.0)
    true = sum(c * (a - b) ** 2 for c, a, b in zip((1, 3, 3, 1), moments_x, moments_y, strict=True))
    rng = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        x, y = rng.normal(m, s, (n, 1)), rng.normal(size=(n, 1))
        found.append(kernel_distance(x, y, n_permutations=1).value)
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - true) < 4 * error < 0.2 * true


def test_the_null_rejects_as_often_as_it_says():
    # Pairs share a strong prompt effect; without the pairing this would not be exchangeable.
    rng = np.random.default_rng(2)
    p = []
    for trial in range(400):
        prompt = 2 * rng.normal(size=(30, 4))
        x, y = (prompt + rng.normal(size=(30, 4)) for _ in range(2))
        p.append(kernel_distance(x, y, n_permutations=199, seed=trial).p)
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.asarray(p) <= level)
        assert abs(share - level) < 3.5 * (level * (1 - level) / 400) ** 0.5


def test_what_seeds_share_is_no_difference():
    # Five seeds that all images share: pairs are of the seeds s and s + 1, so both sets have every seed equally often.
    rng, seeds = np.random.default_rng(4), np.arange(60) % 5
    p = []
    for trial in range(200):
        prompt, shared = 2 * rng.normal(size=(60, 4)), rng.normal(size=(5, 4))
        x, y = (prompt + shared[(seeds + k) % 5] + rng.normal(size=(60, 4)) for k in (0, 1))
        p.append(kernel_distance(x, y, groups=seeds, n_permutations=99, seed=trial).p)
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.asarray(p) <= level)
        assert abs(share - level) < 3.5 * (level * (1 - level) / 200) ** 0.5


def test_a_difference_is_seen_and_set_against_the_null():
    rng = np.random.default_rng(3)
    prompt = rng.normal(size=(60, 8))
    x, y = (prompt + 0.5 * rng.normal(size=(60, 8)) for _ in range(2))
    same, other = kernel_distance(x, y), kernel_distance(x + 0.8, y)
    assert same.value < 3 * same.null_95 and same.p > 0.05
    assert other.value > other.null_95 > 0 and other.p == pytest.approx(1 / 1001)
    assert kernel_distance(x, x).value == pytest.approx(0, abs=1e-12) and kernel_distance(x, x).p == 1


def test_bad_input_is_refused():
    for x, y in (
        (np.zeros((3, 2)), np.zeros((4, 2))),
        (np.zeros((1, 2)), np.zeros((1, 2))),
        (np.zeros(3), np.zeros(3)),
    ):
        with pytest.raises(InvalidRequest, match="kernel_distance"):
            kernel_distance(x, y)
