"""probe.information.lattice: three words and more, where the answer is known, and what holds for every redundancy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from information_world import Channel
from seeded import SEEDS

from probe.errors import InvalidRequest
from probe.information import (
    Nodes,
    atoms,
    co_information,
    lattice_atoms,
    lattice_pid,
    measure,
)

BIT = math.log(2.0)


def groups(words: str) -> list[tuple[str, ...]]:
    return [c for n in range(1, len(words) + 1) for c in combinations(words, n)]


def growing(words: str, seed: int) -> dict[tuple[str, ...], float]:
    """Informations that never fall when a word is added."""
    rng = np.random.default_rng(seed)
    told: dict[tuple[str, ...], float] = {}
    for g in groups(words):
        below = [told[h] for h in told if set(h) < set(g)]
        told[g] = max(below, default=0.0) + float(rng.exponential())
    return told


def nonzero(found: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 9) for name, value in found.items() if abs(value) > 1e-12}


def test_parity_is_synergy_of_all_three_and_copies_are_redundant():
    parity = {g: BIT if len(g) == 3 else 0.0 for g in groups("abc")}
    assert nonzero(lattice_atoms(parity)) == {"{a,b,c}": round(BIT, 9)}
    copies = dict.fromkeys(groups("abc"), BIT)
    assert nonzero(lattice_atoms(copies)) == {"{a}{b}{c}": round(BIT, 9)}
    assert co_information(parity) == pytest.approx(BIT) and co_information(copies) == pytest.approx(BIT)


def test_xor_of_two_beside_an_idle_third():
    told = {g: BIT if {"a", "b"} <= set(g) else 0.0 for g in groups("abc")}
    assert nonzero(lattice_atoms(told)) == {"{a,b}": round(BIT, 9)}
    assert co_information({g: v for g, v in told.items() if "c" not in g}) == pytest.approx(-BIT)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("words", "n"), [("a", 1), ("ab", 4), ("abc", 18), ("abcd", 166)])
def test_atoms_below_a_group_add_up_to_its_information(words, n, seed):
    told = growing(words, seed)
    found = lattice_atoms(told)
    assert len(found) == n and min(found.values()) > -1e-9
    parsed = {name: [set(p.split(",")) for p in name[1:-1].split("}{")] for name in found}
    for group, value in told.items():
        below = [name for name, parts in parsed.items() if any(part <= set(group) for part in parts)]
        assert sum(found[name] for name in below) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_words_have_the_four_atoms_of_pid(seed):
    told = growing("ab", seed)
    four = atoms(*(np.array([told[g]]) for g in groups("ab")))
    assert list(lattice_atoms(told).values()) == pytest.approx([float(v) for v in four])


@pytest.mark.parametrize("seed", SEEDS)
def test_three_observations_of_a_scalar_gaussian(seed):
    one = torch.ones(3, 1, dtype=torch.float64)
    noise = [0.5, 1.0, 2.0]
    channel = Channel(one[:1], one, torch.tensor(noise, dtype=torch.float64))
    x, y = channel.draw(6000, seed)
    rows = {"".join(g): ["abc".index(w) for w in g] for g in groups("abc")}
    nodes = Nodes.logistic(2, 1.0, 2.0, placement="dealt", seed=seed)
    table = measure(channel, x, channel.columns(y, **rows), nodes, seed=seed, batch=8192)
    found = lattice_pid(table, {g: "".join(g) for g in groups("abc")})
    exact = lattice_atoms({g: 0.5 * math.log1p(sum(1 / noise["abc".index(w)] for w in g)) for g in groups("abc")})
    assert found.keys() == exact.keys() and "{a}{b}{c}" in found
    for name, value in exact.items():
        assert abs(found[name] - value) < 0.03, name


def test_refuses_what_is_no_lattice():
    with pytest.raises(InvalidRequest, match=r"without \{a,b\}; expected every group of 1 to 4 words"):
        lattice_atoms({("a",): 1.0, ("b",): 1.0})
    with pytest.raises(InvalidRequest, match="31 groups of 5 words"):
        lattice_atoms(growing("abcde", 0))
