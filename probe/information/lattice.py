"""Decomposition among more than two words: the redundancy lattice with the MMI redundancy.

What is known to several groups of words at once is indexed by antichains, sets of groups of which none contains
another: {a}{b} is what a and b each tell, {ab}{c} what c tells and a and b tell together (Williams and Beer 2010,
https://arxiv.org/abs/1004.2515). alpha <= beta if every group of beta contains one of alpha, and the information of
a lattice point is shared by the points below it,

    R(alpha) = min over groups A of alpha of I(A)           P(alpha) = R(alpha) - sum of P(beta), beta < alpha

Two words have 4 atoms, three have 18, four 166. The atoms at and below the point {A} add up to I(A), whatever the
redundancy is; with MMI none is negative as long as more words tell more (Barrett 2015, https://arxiv.org/abs/1411.2832).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations

from probe.errors import InvalidRequest
from probe.information.columns import EMPTY
from probe.information.mutual import Form, information
from probe.information.table import NodeTable

Group = frozenset[str]
Antichain = frozenset[Group]
_MOST = 4


def lattice_atoms(told: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    """Atoms of the informations of all groups of words.

    Args:
        told: group of words -> its information, for all 2^n - 1 groups of n words, n from 1 to 4. A group is any
            collection of names, such as ("a", "b").

    Returns:
        name of the antichain, such as "{a}{b}" or "{a,b}{c}" -> nats, from the bottom of the lattice to its top.

    Raises:
        InvalidRequest: groups are missing, or there are too many words.
    """
    informations = {frozenset(group): float(value) for group, value in told.items()}
    words = sorted(frozenset().union(*informations))
    missing = set(_groups(tuple(words))) - set(informations)
    if not 1 <= len(words) <= _MOST or missing or len(informations) != 2 ** len(words) - 1:
        raise InvalidRequest(
            f"lattice_atoms: {len(informations)} groups of {len(words)} words, without "
            f"{', '.join(map(_group, sorted(missing, key=_group))) or 'none missing'}; expected every group of 1 to "
            f"{_MOST} words."
        )
    atoms: dict[Antichain, float] = {}
    for alpha, below in _lattice(tuple(words)):
        atoms[alpha] = min(informations[a] for a in alpha) - sum(atoms[beta] for beta in below)
    return {_name(alpha): value for alpha, value in atoms.items()}


def lattice_pid(
    table: NodeTable, columns: Mapping[tuple[str, ...], str], *, given: str = EMPTY, form: Form = "orthogonal"
) -> dict[str, float]:
    """Atoms of the mean information of a table's columns.

    Args:
        table: has the columns.
        columns: group of words -> the column that says them, for all groups, such as {("a",): "word:a", ("b",):
            "word:b", ("a", "b"): "pair:a+b"}.
        given: the column without them.
        form: of the informations.

    Raises:
        InvalidRequest: see ``lattice_atoms`` and ``information``.
    """
    return lattice_atoms({g: information(table, c, given=given, form=form).mean for g, c in columns.items()})


def co_information(told: Mapping[tuple[str, ...], float]) -> float:
    """I(a) + I(b) - I(ab) for two words, and so on with changing signs: what no redundancy measure decides.

    Above zero redundancy prevails, below zero synergy (for two words). ``told`` as for ``lattice_atoms``.
    """
    return float(sum((-1.0) ** (len(frozenset(group)) + 1) * value for group, value in told.items()))


@lru_cache
def _lattice(words: tuple[str, ...]) -> tuple[tuple[Antichain, tuple[Antichain, ...]], ...]:
    """Every antichain with all that lie below it, the lower before the higher."""
    groups = _groups(words)
    chains: list[Antichain] = []

    def grow(chain: Antichain, rest: tuple[Group, ...]) -> None:
        for i, group in enumerate(rest):
            if all(not (group <= g or g <= group) for g in chain):
                chains.append(chain | {group})
                grow(chain | {group}, rest[i + 1 :])

    grow(frozenset(), groups)
    below = {
        alpha: tuple(beta for beta in chains if beta != alpha and all(any(b <= a for b in beta) for a in alpha))
        for alpha in chains
    }
    order = sorted(chains, key=lambda alpha: (len(below[alpha]), _name(alpha)))
    return tuple((alpha, below[alpha]) for alpha in order)


def _groups(words: tuple[str, ...]) -> tuple[Group, ...]:
    return tuple(frozenset(c) for n in range(1, len(words) + 1) for c in combinations(words, n))


def _group(group: Group) -> str:
    return "{" + ",".join(sorted(group)) + "}"


def _name(alpha: Antichain) -> str:
    return "".join(sorted((_group(g) for g in alpha), key=lambda g: (len(g), g)))
