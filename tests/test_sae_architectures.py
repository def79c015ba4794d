"""Every architecture against an independent dense autograd model, by random search; and its code, fold and file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae import (
    Architecture,
    BatchTopKSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    SAEConfig,
    SparseAutoencoder,
    SparseDictionary,
    load_sae,
    make_sae,
    save_sae,
)
from sae.config import ARCHITECTURES
from sae.errors import ConfigError, CorruptFile, UnsupportedSAE
from sae.numerics.product import CoarseRows, pre_activations
from sae.numerics.selection import entries_above, largest_entries
from sae.numerics.sparse import FlatCode

Dense = dict[str, torch.Tensor]


def random_sae(
    architecture: str, *, d: int = 5, m: int = 24, k: int = 3, seed: int = 0, **options: Any
) -> tuple[SparseAutoencoder, torch.Tensor]:
    """A float64 dictionary off its initial symmetry, and rows for it."""
    g = torch.Generator().manual_seed(seed)
    config = SAEConfig(d, m, k, architecture=architecture, aux_alpha=0.3, k_aux=3, bandwidth=0.4, **options)
    sae = make_sae(config, seed=seed).double()
    assert isinstance(sae, SparseAutoencoder)
    x = 2 * torch.randn(30, d, generator=g, dtype=torch.float64) + 1
    sae.initialise(x)
    with torch.no_grad():
        sae.W_enc.add_(0.2 * torch.randn(d, m, generator=g))
        sae.b_enc.add_(0.1 * torch.randn(m, generator=g))
        sae.b_dec.add_(0.1 * torch.randn(d, generator=g))
        if isinstance(sae, JumpReLUSAE):
            sae.log_threshold.add_(0.3 * torch.randn(m, generator=g))
    return sae, x


def batch_top(pre: torch.Tensor, n: int) -> torch.Tensor:
    """Mask of the n largest positive entries."""
    flat = pre.detach().flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.argsort(descending=True)[:n]] = True
    return (mask & (flat > 0)).view_as(pre)


class Step(torch.autograd.Function):
    """The step function at p - theta with a rectangle of width eps as its derivative, by p only for the test."""

    @staticmethod
    def forward(ctx: Any, u: torch.Tensor, width: float) -> torch.Tensor:
        ctx.save_for_backward(u)
        ctx.width = width
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (u,) = ctx.saved_tensors
        return grads[0] * (u.abs() < ctx.width / 2) / ctx.width, None


def reference(sae: SparseAutoencoder, x: torch.Tensor, dead: torch.Tensor) -> tuple[torch.Tensor, Dense]:
    """Loss and gradients with dense codes and autograd, written from the papers' formulas."""
    config = sae.config
    leaves = {name: t.clone().requires_grad_(True) for name, t in sae.trained_tensors().items()}
    encoder, decoder, b_enc, b_dec = (leaves[name] for name in ("encoder", "decoder", "b_enc", "b_dec"))
    x = x * sae.scale
    pre = (x - b_dec) @ encoder.T + b_enc
    variance = (x - x.mean(0)).pow(2).sum()
    extra = torch.zeros((), dtype=x.dtype)
    if config.architecture == "topk":
        top = pre.topk(config.k)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    elif config.architecture in ("batchtopk", "matryoshka"):
        z = pre * batch_top(pre, len(x) * config.k)
    elif config.architecture == "jumprelu":
        theta = leaves["log_threshold"].exp()
        on = Step.apply(pre.detach() - theta, config.bandwidth)
        assert isinstance(on, torch.Tensor)
        # z = p [p > theta]: p passes where on; the smoothed step has height theta at the threshold.
        z = pre * on.detach() + theta.detach() * (on - on.detach())
        extra = config.sparsity * (on.sum(1).mean() / config.k - 1) ** 2
    else:
        z = pre.relu()
        extra = config.sparsity * z.sum() / (len(x) * config.d_in**0.5)
    sizes = config.nested if config.architecture == "matryoshka" else (config.d_sae,)
    errors = [(x - (z[:, :m] @ decoder[:m] + b_dec)).pow(2).sum() / variance for m in sizes]
    loss = sum(errors[1:], errors[0]) / len(errors) + extra
    if len(dead) and config.architecture != "relu":
        e = (x - z @ decoder - b_dec).detach()
        keep = min(config.n_aux, len(dead))
        pre_dead = (x - b_dec.detach()) @ encoder[dead].T + b_enc[dead]
        top = pre_dead.topk(keep)
        z_dead = torch.zeros_like(pre_dead).scatter(1, top.indices, top.values.relu())
        scale = min(len(dead) / config.n_aux, 1.0)
        loss = loss + config.aux_alpha * scale * (z_dead @ decoder[dead] - e).pow(2).sum() / variance
    loss.backward()
    gradients = {name: t.grad if t.grad is not None else torch.zeros_like(t) for name, t in leaves.items()}
    along = (gradients["decoder"] * decoder.detach()).sum(1, keepdim=True)
    gradients["decoder"] = gradients["decoder"] - along * decoder.detach()
    return loss.detach(), gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    d=st.integers(2, 8),
    m=st.integers(17, 40),
    k=st.integers(1, 6),
    n_dead=st.integers(0, 8),
)
def test_gradients_equal_dense_autograd(architecture: str, seed: int, d: int, m: int, k: int, n_dead: int) -> None:
    sae, x = random_sae(architecture, d=d, m=m, k=k, seed=seed)
    dead = torch.randperm(m, generator=torch.Generator().manual_seed(seed))[:n_dead]
    expected, gradients = reference(sae, x, dead)
    result, ours = sae.loss(x, dead)
    torch.testing.assert_close(result.loss, expected, rtol=1e-9, atol=1e-12)
    assert ours.keys() == gradients.keys() == sae.trained_tensors().keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-8, atol=1e-10, msg=lambda s, n=name: f"{n}: {s}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contract_and_the_two_encodings(architecture: str) -> None:
    sae, x = random_sae(architecture)
    assert isinstance(sae, SparseDictionary)
    assert isinstance(sae, Architecture)
    dense = sae.encode(x.view(5, 6, -1))
    assert bool((dense >= 0).all())
    code = sae.encode_sparse(x.view(5, 6, -1))
    torch.testing.assert_close(code.to_dense(sae.d_sae), dense)
    torch.testing.assert_close(sae.decode_sparse(code), sae.decode(dense))
    assert int((dense > 0).sum()) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_and_saved_compute_the_same(architecture: str, tmp_path: Path) -> None:
    sae, x = random_sae(architecture)
    sae = sae.float()
    x = x.float()
    again = load_sae(save_sae(sae, tmp_path / "a"))
    assert isinstance(again, SparseAutoencoder) and type(again) is type(sae)
    assert again.config == sae.config
    assert float(again.scale) == 1.0
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(x), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sae_lens_computes_the_same(architecture: str, tmp_path: Path) -> None:
    import warnings

    sae, x = random_sae(architecture)
    sae, x = sae.float(), x.float()
    save_sae(sae, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sae-lens and what it imports
        sae_lens = pytest.importorskip("sae_lens")
        theirs = sae_lens.SAE.load_from_disk(tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(theirs(x), sae(x), rtol=1e-4, atol=1e-4)
        theirs.save_model(tmp_path / "theirs")
    torch.testing.assert_close(load_sae(tmp_path / "theirs")(x), sae(x), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 200), guess=st.floats(0, 5), rows=st.integers(1, 30))
def test_largest_entries_are_exact_for_any_guess(seed: int, n: int, guess: float, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, encoder, bias = (torch.randn(*shape, generator=g) for shape in ((rows, 4), (19, 4), (19,)))
    buffer = torch.empty(7, 19)
    code = largest_entries(x, encoder, bias, n, guess=guess, buffer=buffer)
    pre = torch.addmm(bias, x, encoder.T)
    expected = pre.relu().flatten().sort(descending=True).values[:n]
    torch.testing.assert_close(code.values.sort(descending=True).values, expected[expected > 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pre[code.rows(), code.indices], code.values, rtol=1e-5, atol=1e-6)
    assert bool((code.rows().diff() >= 0).all())


def test_equal_values_are_cut_to_n() -> None:
    code = largest_entries(torch.ones(6, 1), torch.ones(4, 1), torch.zeros(4), 10)
    assert code.counts().tolist() == [4, 4, 2, 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("matmul", ["bf16", "int8"])
def test_coarse_products_select_and_keep_exact_values(matmul: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, encoder, bias = torch.randn(50, 64, generator=g), torch.randn(96, 64, generator=g), torch.randn(96, generator=g)
    pre = x @ encoder.T + bias
    code = entries_above(x, encoder, bias, torch.tensor(8.0), matmul=matmul)
    torch.testing.assert_close(code.values, pre[code.rows(), code.indices], rtol=1e-4, atol=1e-4)
    top = largest_entries(x, encoder, bias, 300, matmul=matmul)
    torch.testing.assert_close(top.values, pre[top.rows(), top.indices], rtol=1e-4, atol=1e-4)
    exact = largest_entries(x, encoder, bias, 300)
    same = len(
        set(zip(top.rows().tolist(), top.indices.tolist(), strict=True))
        & set(zip(exact.rows().tolist(), exact.indices.tolist(), strict=True))
    )
    assert same >= 295


def int8_product(x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.cat([p.clone() for _, p in pre_activations(x, encoder, bias, matmul="int8")])


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 40), st.integers(2, 200))
def test_int8_product_is_off_by_its_rounding(seed: int, n: int, m: int, d: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, encoder, bias = (torch.randn(s, generator=g) for s in ((n, d), (m, d), (m,)))
    p, exact = int8_product(x, encoder, bias), x @ encoder.T + bias
    # |<x, w> - <x^, w^>| <= |x - x^| |w| + |x^| |w - w^|, and both errors are within half a level of each entry.
    half = [y.abs().amax(1) / 254 * d**0.5 for y in (x, encoder)]
    norm = [y.norm(dim=1) for y in (x, encoder)]
    bound = half[0][:, None] * norm[1] + (norm[0] + half[0])[:, None] * half[1]
    assert bool(((p - exact).abs() <= bound * 1.001 + 1e-4).all())


def test_int8_product_does_rows_that_it_resolves_badly_in_full() -> None:
    g = torch.Generator().manual_seed(0)
    x, encoder, bias = torch.randn(9, 256, generator=g), torch.randn(30, 256, generator=g), torch.randn(30, generator=g)
    x[4, 7] = encoder[11, 30] = 1e4  # the other entries are below half a level
    x[5], encoder[12] = 0.0, 0.0
    x[6], encoder[13] = torch.eye(256)[3], torch.eye(256)[3] * 50  # one entry only: exact as it is
    assert CoarseRows.of(x).poor.tolist() == [4] and CoarseRows.of(encoder).poor.tolist() == [11]
    p, exact = int8_product(x, encoder, bias), x @ encoder.T + bias
    torch.testing.assert_close(p[4], exact[4])
    torch.testing.assert_close(p[:, 11], exact[:, 11])
    torch.testing.assert_close(p[5], bias)
    assert torch.equal(p[6, 13], 50 + bias[13])


def test_flat_code_pads_and_keeps() -> None:
    code = FlatCode.from_rows(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4, 0, 2]), torch.tensor([0, 2, 2]), n_rows=4)
    dense = code.padded().to_dense(5)
    assert dense.tolist() == [[0, 0, 0, 0, 1], [0] * 5, [2, 0, 3, 0, 0], [0] * 5]
    assert code.keep(code.values > 1).counts().tolist() == [0, 0, 2, 0]


def test_batchtopk_threshold_follows_the_batches() -> None:
    sae, x = random_sae("batchtopk")
    assert isinstance(sae, BatchTopKSAE)
    before = float(sae.threshold)
    result, _ = sae.loss(x)
    assert int(result.fired.sum()) == len(x) * 3
    smallest = float(sae.choose((x * sae.scale - sae.b_dec).detach()).values.min())
    sae.after_update()
    assert float(sae.threshold) == pytest.approx(0.99 * before + 0.01 * smallest)


def test_matryoshka_sizes() -> None:
    sae, _ = random_sae("matryoshka", m=32)
    assert isinstance(sae, MatryoshkaSAE)
    assert sae.config.nested == (2, 4, 8, 16, 32)
    with pytest.raises(ConfigError, match="must rise from above 0 to d_sae = 32"):
        SAEConfig(4, 32, 2, architecture="matryoshka", prefixes=(8, 16))
    assert SAEConfig(4, 32, 2, prefixes=(8, 32)).to_json()["prefixes"] == [8, 32]


def test_refusals(tmp_path: Path) -> None:
    import json

    with pytest.raises(ConfigError, match="'gated'; expected one of topk, batchtopk"):
        SAEConfig(4, 32, 2, architecture="gated")
    sae, _ = random_sae("batchtopk")
    path = save_sae(sae.float(), tmp_path) / "cfg.json"
    cfg = json.loads(path.read_text())
    path.write_text(json.dumps(cfg | {"architecture": "gated"}))
    with pytest.raises(UnsupportedSAE, match="'gated'; known are topk, jumprelu, standard"):
        load_sae(tmp_path)
    path.write_text(json.dumps(cfg | {"architecture": "topk"}))
    with pytest.raises(CorruptFile, match="do not belong together"):
        load_sae(tmp_path)


def test_command_line_knows_them_all() -> None:
    from apps.commands import train

    assert train.ARCHITECTURES == ARCHITECTURES
