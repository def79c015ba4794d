"""Triton's kernels against PyTorch, on CUDA where there is a GPU and else in Triton's interpreter.

Run by `test_sae_kernels.py` in a process of its own: the interpreter is chosen before Triton is imported.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_options import LEVELS, TIMES

from sae import SAEConfig, make_sae
from sae.config import ARCHITECTURES
from sae.numerics import triton_dots, triton_sums
from sae.numerics.kernels import faster, using
from sae.numerics.sparse import ByFeature, FlatCode, gather_sum, row_dots

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal up to rounding, against sums made in float64."""
    assert found.dtype == dtype
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * max(scale, 1.0))


def case(seed: int, n_rows: int, d: int, m: int, longest: int, dtype: torch.dtype) -> tuple[FlatCode, Any, Any]:
    """A ragged code with empty rows and repeated features, rows and a dictionary; rows are parts of wider arrays."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, longest + 1, (n_rows,), generator=g)
    n = int(counts.sum())
    values = torch.randn(n, generator=g).to(dtype)
    indices = torch.randint(0, m, (n,), generator=g)
    x = torch.randn(n_rows, d + 3, generator=g).to(dtype)[:, :d]
    w = torch.randn(m, d + 5, generator=g).to(dtype)[:, 2 : 2 + d]
    code = FlatCode(values, indices, counts.cumsum(0) - counts)
    return FlatCode(*(t.to(DEVICE) for t in code)), x.to(DEVICE), w.to(DEVICE)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    n_rows=st.integers(1, 5),
    d=st.sampled_from([1, 2, 17, 128, 131]),
    m=st.integers(1, 7),
    longest=st.sampled_from([0, 1, 5, 16, 35]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_products_equal_dense_ones(seed: int, n_rows: int, d: int, m: int, longest: int, dtype: torch.dtype) -> None:
    code, x, w = case(seed, n_rows, d, m, longest, dtype)
    dense = torch.zeros(n_rows, m, dtype=torch.float64, device=DEVICE)
    dense.index_put_((code.rows(), code.indices), code.values.double(), accumulate=True)
    with using("triton"):
        decoded, dots = gather_sum(code, w), row_dots(code, x, w)
        by_feature = ByFeature(code, m)
        summed = by_feature.sum_rows(code.values, x)
    close(decoded, dense @ w.double(), dtype)
    close(dots, (x.double() @ w.double().T)[code.rows(), code.indices], dtype)
    close(summed, dense.T @ x.double(), dtype)
    close(by_feature.sum_entries(code.values.double()), dense.sum(0), torch.float64)


def test_a_given_array_is_written_also_where_it_is_a_part_of_another() -> None:
    code, _, w = case(3, 4, 20, 6, 9, torch.float32)
    with using("triton"):
        expected = gather_sum(code, w)
        own = torch.full((4, 20), torch.nan, device=DEVICE)
        assert gather_sum(code, w, out=own) is own
        wide = torch.full((4, 25), torch.nan, device=DEVICE)
        gather_sum(code, w, out=wide[:, 3:23])
    assert torch.equal(own, expected)
    assert torch.equal(wide[:, 3:23], expected)
    assert bool(wide[:, :3].isnan().all())
    assert bool(wide[:, 23:].isnan().all())


def test_the_same_input_gives_the_same_bits() -> None:
    code, x, _ = case(5, 6, 40, 2, 30, torch.float32)  # two features: long bags
    with using("triton"):
        first, second = (ByFeature(code, 2).sum_rows(code.values, x) for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_go_through_pytorch() -> None:
    code, _, w = case(7, 4, 20, 6, 9, torch.float32)
    w = w.clone().requires_grad_(True)
    with using("triton"):
        gather_sum(code, w).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad.sum(1), ByFeature(code, 6).sum_entries(code.values) * 20)


def test_nothing_to_do() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    table = torch.ones(3, 8, device=DEVICE)
    assert triton_sums.bag_sum(none, table, none, none.float()).shape == (0, 8)
    assert not triton_sums.bag_sum(none, table, torch.zeros(2, dtype=torch.int32, device=DEVICE), none.float()).any()
    assert triton_dots.row_dots(none, torch.zeros(3, dtype=torch.int64, device=DEVICE), table, table).shape == (0,)


@pytest.mark.parametrize(
    ("architecture", "time"), [*((a, "shared") for a in ARCHITECTURES), *(("topk", t) for t in TIMES)]
)
def test_a_step_is_the_same_by_either(architecture: str, time: str) -> None:
    options: dict[str, Any] = TIMES.get(time, {})
    sae = make_sae(SAEConfig(6, 24, 3, architecture=architecture, aux_alpha=0.3, **options), seed=1)
    g = torch.Generator().manual_seed(0)
    log_snr = torch.tensor(LEVELS, dtype=torch.float64)[torch.arange(20) % len(LEVELS)]
    x = torch.randn(20, 12 if time == "residual" else 6, generator=g)
    sae.initialise(x, log_snr)
    sae, x, log_snr = sae.to(DEVICE), x.to(DEVICE), log_snr.to(DEVICE)
    dead = torch.tensor([1, 9, 20], device=DEVICE)
    found = {}
    for name in ("torch", "triton"):
        with using(name):
            result, gradients = sae.loss(x, dead, log_snr)
        found[name] = result, {key: gradient.clone() for key, gradient in gradients.items()}
    (expected, by_torch), (result, by_triton) = found["torch"], found["triton"]
    torch.testing.assert_close(result.loss, expected.loss)
    assert torch.equal(result.fired, expected.fired)
    assert by_triton.keys() == by_torch.keys()
    for key, gradient in by_triton.items():
        torch.testing.assert_close(gradient, by_torch[key], rtol=1e-4, atol=1e-6, msg=lambda s, k=key: f"{k}: {s}")


def test_the_faster_one_is_found() -> None:
    code, x, w = case(11, 3, 16, 6, 4, torch.float32)
    found = faster(lambda: row_dots(code, x, w), DEVICE)
    assert found["chosen"] == min(("torch", "triton"), key=lambda name: found[name])
