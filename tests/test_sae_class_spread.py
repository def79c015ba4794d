"""Class spread, purity and the light probe on codes whose answer is known."""

import numpy as np
import pytest

from sae.errors import EmptySelection
from sae.evaluation.class_spread import class_spread, light_probe

CLASSES = np.arange(200) % 5


def test_units_that_stand_for_a_class_have_no_spread() -> None:
    rng = np.random.default_rng(0)
    codes = (CLASSES[:, None] == np.arange(5)) * rng.uniform(1, 2, (200, 5))
    found = class_spread(codes, CLASSES)
    assert (found.spread, found.purity, found.units) == (0.0, 1.0, 5)
    assert found.spread_shuffled == pytest.approx(np.sqrt(2), abs=0.2)  # of five equally frequent numbers
    assert found.purity_shuffled < 0.6


def test_units_that_know_nothing_are_as_shuffled() -> None:
    found = class_spread(np.random.default_rng(1).random((200, 300)), CLASSES, shuffles=5)
    assert found.spread == pytest.approx(found.spread_shuffled, abs=0.05)
    assert found.purity == pytest.approx(found.purity_shuffled, abs=0.03)


def test_rare_and_weak_units_are_left_out() -> None:
    codes = np.zeros((200, 4))
    codes[:10, 0] = 1  # on in ten samples: one too few
    codes[:11, 1] = 5
    codes[:, 2] = np.linspace(0.1, 0.2, 200)
    assert class_spread(codes, CLASSES).units == 2
    only = class_spread(codes, CLASSES, max_units=1)
    assert only.spread == pytest.approx(CLASSES[:10].std())  # unit 1 has the larger mean
    nothing = class_spread(np.zeros((200, 4)), CLASSES)
    assert nothing.units == 0
    assert np.isnan(nothing.spread)


def test_the_spread_depends_on_numbering_and_purity_does_not() -> None:
    rng = np.random.default_rng(2)
    codes = rng.random((200, 50)) + 0.3 * (CLASSES[:, None] == rng.integers(5, size=50))
    renumbered = np.array([0, 4, 1, 3, 2])[CLASSES]
    a, b = class_spread(codes, CLASSES), class_spread(codes, renumbered)
    assert a.purity == b.purity
    assert a.spread != b.spread


def test_the_probe_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    train = np.arange(200) % 4 > 0
    vectors = rng.normal(size=(200, 8))
    assert light_probe(vectors, CLASSES, train).mean() == pytest.approx(0.2, abs=0.15)
    vectors[:, :5] += 8 * (CLASSES[:, None] == np.arange(5))
    assert light_probe(1000 * vectors, CLASSES, train).all()  # the scale does not matter
    with pytest.raises(EmptySelection):
        light_probe(vectors, np.zeros(200, int), train)
    with pytest.raises(EmptySelection):
        light_probe(vectors, CLASSES, np.ones(200, bool))
