"""Published tasks of mutual information (Czyz et al. 2023, "Beyond Normal"), with exact denoisers."""

from __future__ import annotations

import pytest
import torch
from information_world import WIDE, Channel, Intervals, Student, channel_table
from scipy.special import gammaln
from seeded import SEEDS

from probe.information import (
    Column,
    Nodes,
    adaptive_nodes,
    information,
    measure,
)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "exact"), [(1, 0.41334), (2, 0.29389), (3, 0.41334), (5, 0.59281), (25, 1.29218)])
def test_v15_multinormal_tasks(n, exact, seed):
    """Bivariate normal with correlation 0.75, and dense multinormals with 0.5 between all coordinates."""
    rho = 0.75 if n == 1 else 0.5
    one = torch.ones(n, n, dtype=torch.float64)
    s = rho * one + (1 - rho) * torch.eye(n, dtype=torch.float64)
    a = (rho * one) @ torch.linalg.inv(s)
    cov = s - a @ (rho * one)
    # Noise with a full covariance becomes independent in the basis of its eigenvectors.
    values, vectors = torch.linalg.eigh(cov)
    channel = Channel(s, vectors.T @ a, values)
    assert channel.information() == pytest.approx(exact, abs=1e-5)
    table = channel_table(channel, 4000, seed, Nodes.logistic(4, *WIDE, placement="dealt", seed=seed))
    assert information(table, "y", form="orthogonal").mean == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("k", "df", "exact"), [(2, 2, 0.19315), (3, 2, 0.29092), (3, 3, 0.17871), (5, 2, 0.44815)])
def test_v18_student_tasks(k, df, exact, seed):
    def f(v: float) -> float:  # entropy of a t law of total shape v, up to what cancels
        from scipy.special import digamma

        return (df + v) / 2 * (digamma((df + v) / 2) - digamma(df / 2)) - gammaln((df + v) / 2) + gammaln(df / 2)

    assert 2 * f(k) - f(2 * k) == pytest.approx(exact, abs=1e-5)
    model = Student(k, df)
    x, y = model.draw(6000, seed)
    columns = [Column("empty"), Column("y", list(y))]
    table = measure(model, x, columns, Nodes.logistic(4, 0.0, 1.5, placement="dealt", seed=seed), batch=4096)
    assert information(table, "y", form="orthogonal").mean == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("e", "exact"), [(0.75, 1 / 3), (0.1, 1.70944)])
def test_v18_uniform_tasks(e, exact, seed):
    """Densities with an edge: the gap falls with e^(-a/2) only, so that nodes have to adapt."""
    model = Intervals(e)
    x, y = model.draw(3000, seed)

    def columns(n: int) -> list[Column]:
        return [Column("empty"), Column("y", list(y[:n]))]

    model.log_snr_range = (-20.0, 25.0)
    nodes = adaptive_nodes(model, x[:100], columns(100), 8, placement="dealt", seed=seed, batch=4800)
    table = measure(model, x, columns(3000), nodes, seed=seed, batch=8192)
    assert information(table, "y", form="orthogonal").mean == pytest.approx(exact, abs=0.02 + 0.03 * exact)
