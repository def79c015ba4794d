"""Decompositions whose atoms are known: logical gates, in bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from information_world import Points
from seeded import SEEDS, normal

from probe.information import (
    Column,
    Decomposition,
    Nodes,
    adaptive_nodes,
    measure,
    pid,
)

BIT = math.log(2.0)


GATES = {
    "RDN": ([(0, 0), (1, 1)], lambda a, b: (a,)),
    "UNQ": ([(0, 0), (0, 1), (1, 0), (1, 1)], lambda a, b: (a,)),
    "COPY": ([(0, 0), (0, 1), (1, 0), (1, 1)], lambda a, b: (a, b)),
    "XOR": ([(0, 0), (0, 1), (1, 0), (1, 1)], lambda a, b: (a ^ b,)),
    "AND": ([(0, 0), (0, 1), (1, 0), (1, 1)], lambda a, b: (a & b,)),
}
ATOMS = {  # bits: redundant, unique 1, unique 2, synergistic
    ("RDN", "mmi"): (1, 0, 0, 0),
    ("RDN", "pointwise_min"): (1, 0, 0, 0),
    ("RDN", "finn_lizier"): (1, 0, 0, 0),
    ("RDN", "i_min"): (1, 0, 0, 0),
    ("XOR", "mmi"): (0, 0, 0, 1),
    ("XOR", "pointwise_min"): (0, 0, 0, 1),
    ("XOR", "finn_lizier"): (0, 0, 0, 1),
    ("XOR", "i_min"): (0, 0, 0, 1),
    ("COPY", "mmi"): (1, 0, 0, 1),
    ("COPY", "pointwise_min"): (1, 0, 0, 1),
    ("COPY", "finn_lizier"): (1, 0, 0, 1),
    ("COPY", "i_min"): (1, 0, 0, 1),
    ("UNQ", "mmi"): (0, 1, 0, 0),
    ("UNQ", "pointwise_min"): (0, 1, 0, 0),
    ("UNQ", "i_min"): (0, 1, 0, 0),
    ("UNQ", "finn_lizier"): (1, 0, -1, 1),
    ("AND", "mmi"): (0.3113, 0, 0, 0.5),
    ("AND", "i_min"): (0.3113, 0, 0, 0.5),
    ("AND", "pointwise_min"): (0.0613, 0.25, 0.25, 0.25),
    ("AND", "finn_lizier"): (0.5613, -0.25, -0.25, 0.75),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gate", GATES)
def test_v11_gates(gate, seed):
    inputs, output = GATES[gate]
    targets = [output(a, b) for a, b in inputs]
    y = torch.tensor(inputs)
    points = torch.tensor(targets, dtype=torch.float64)
    # Groups 0, 1: the first bit is so; 2, 3: the second; 4 ... 7: both.
    allowed = [y[:, 0] == 0, y[:, 0] == 1, y[:, 1] == 0, y[:, 1] == 1]
    allowed += [(y[:, 0] == a) & (y[:, 1] == b) for a in (0, 1) for b in (0, 1)]
    model = Points(points, 0.05, torch.stack(allowed), torch.ones(len(inputs), dtype=torch.float64))

    def drawn(n: int) -> tuple[torch.Tensor, list[Column], list[int]]:
        k = torch.arange(n) % len(inputs)  # every input equally often: averages are over noise alone
        columns = [
            Column("empty"),
            Column("word:a", y[k, 0].tolist()),
            Column("word:b", (2 + y[k, 1]).tolist()),
            Column("pair:a+b", (4 + 2 * y[k, 0] + y[k, 1]).tolist()),
        ]
        return points[k] + 0.05 * normal(seed, n, points.shape[1]), columns, k.tolist()

    def check(found: Decomposition, tolerance: float) -> None:
        for name, value, exact in zip(found.image._fields, found.image, ATOMS[gate, found.measure], strict=True):
            assert abs(float(value) / BIT - exact) < tolerance, (found.measure, name)
        r, first, second, _ = (float(v) for v in found.image)
        assert sum(float(v) for v in found.image) == pytest.approx(found.both.mean, abs=1e-12)
        assert r + first == pytest.approx(found.first.mean, abs=1e-12)
        assert r + second == pytest.approx(found.second.mean, abs=1e-12)

    # Averages: 20,000 images with a node each. COPY has two bits and twice the error.
    x, columns, _ = drawn(20_000)
    pilot = [replace(c, conds=c.conds and c.conds[:64]) for c in (columns[0], columns[3])]
    nodes = adaptive_nodes(model, x[:64], pilot, 1, placement="dealt", seed=seed, batch=8192)
    check(pid(measure(model, x, columns, nodes, seed=seed, batch=8192), "a", "b"), 0.16 if gate == "COPY" else 0.05)
    # Single images: their noise lowers the mean of a minimum, so that pointwise measures need many nodes of each.
    x, columns, k = drawn(24)
    table = measure(model, x, columns, Nodes.logistic(800, 1.0, 1.5, 8.0, seed=seed), seed=seed, batch=8192)
    surprisal = (np.full(24, BIT), np.full(24, BIT))  # the priors of both bits are equal
    for measure_ in ("pointwise_min", "finn_lizier", "i_min"):
        found = pid(table, "a", "b", measure=measure_, surprisal=surprisal, targets=[str(targets[i]) for i in k])
        check(found, 0.16)
        assert found.surprisal is not None
