"""The explicit training step against an independent dense autograd model, in float64."""

import pytest
import torch

from sae import SAEConfig, TopKSAE
from sae.numerics.selection import encode_rows, top_k
from sae.numerics.sparse import ByFeature, TopKCode, gather_sum, row_dots
from sae.numerics.step import NO_AUX, Aux, Measure, Parameters, StepResult, normalise_rows, remove_parallel, sparse_step


def make(seed: int, d: int = 6, m: int = 32, rows: int = 40) -> tuple[Parameters, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    decoder = torch.randn(m, d, generator=g, dtype=torch.float64)
    normalise_rows(decoder)
    parameters = Parameters(
        encoder=decoder + 0.3 * torch.randn(m, d, generator=g, dtype=torch.float64),
        decoder=decoder,
        b_enc=0.1 * torch.randn(m, generator=g, dtype=torch.float64),
        b_dec=torch.randn(d, generator=g, dtype=torch.float64),
    )
    return parameters, 2 * torch.randn(rows, d, generator=g, dtype=torch.float64) + 1


def reference(
    parameters: Parameters, x: torch.Tensor, k: int, dead: torch.Tensor, n_aux: int, alpha: float
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The textbook loss (equations A1 to A4) with dense codes and autograd. Returns (loss, aux, gradients)."""
    encoder, decoder, b_enc, b_dec = leaves = [t.clone().requires_grad_(True) for t in parameters.tensors()]
    pre = (x - b_dec) @ encoder.T + b_enc
    top = pre.topk(k)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    xh = z @ decoder + b_dec
    variance = (x - x.mean(0)).pow(2).sum()
    loss = (x - xh).pow(2).sum() / variance
    aux = torch.zeros_like(loss)
    if len(dead) and n_aux:
        e = (x - xh).detach()
        keep = min(n_aux, len(dead))
        pre_dead = (x - b_dec.detach()) @ encoder[dead].T + b_enc[dead]
        top = pre_dead.topk(keep)
        z_dead = torch.zeros_like(pre_dead).scatter(1, top.indices, top.values.relu())
        aux = min(len(dead) / n_aux, 1.0) * (z_dead @ decoder[dead] - e).pow(2).sum() / variance
    (loss + alpha * aux).backward()
    return (loss + alpha * aux).detach(), aux.detach(), [t.grad if t.grad is not None else t * 0 for t in leaves]


def topk_step(p: Parameters, x: torch.Tensor, k: int, aux: Aux = NO_AUX) -> StepResult:
    """The step under test, with chunks of seven rows."""
    buffer = torch.empty(7, len(p.encoder), dtype=x.dtype)
    centred = x - p.b_dec
    code = encode_rows(centred, p.encoder, p.b_enc, k, buffer=buffer).flat()
    return sparse_step(p, centred, code, Measure.of(centred), aux)


NONE = torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("dead", [NONE, torch.tensor([5]), torch.arange(10, 31)], ids=["alive", "one", "many"])
def test_step_equals_dense_autograd(k: int, dead: torch.Tensor) -> None:
    parameters, x = make(seed=k)
    loss, aux, gradients = reference(parameters, x, k, dead, n_aux=4, alpha=0.2)
    result = topk_step(parameters, x, k, Aux(dead, 4, 0.2))
    torch.testing.assert_close(result.loss, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.aux_loss, aux, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(result.gradients.tensors(), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_aux_reaches_encoder_and_decoder_of_dead_features_only() -> None:
    parameters, x = make(seed=7)
    dead = torch.tensor([3, 4, 20])
    plain = topk_step(parameters, x, 2).gradients
    with_aux = topk_step(parameters, x, 2, Aux(dead, 2, 1.0)).gradients
    live = torch.ones(32, dtype=torch.bool)
    live[dead] = False
    for name in ("encoder", "decoder", "b_enc"):
        change = (getattr(with_aux, name) - getattr(plain, name)).reshape(32, -1).norm(dim=1)
        assert bool((change[dead] > 1e-6).all()), name
        assert float(change[live].max()) == 0.0, name
    assert torch.equal(with_aux.b_dec, plain.b_dec)


def test_aux_step_moves_dead_features_towards_the_residual() -> None:
    parameters, x = make(seed=9)
    dead = torch.tensor([3, 4, 20, 21])
    plain = topk_step(parameters, x, 2)
    before = topk_step(parameters, x, 2, Aux(dead, 4, 1.0))
    aux_only = [a - b for a, b in zip(before.gradients.tensors(), plain.gradients.tensors(), strict=True)]
    # A published implementation has the residual's sign wrong: there this step makes the dead features worse.
    moved = Parameters(*[t - 0.05 * g for t, g in zip(parameters.tensors(), aux_only, strict=True)])
    code = encode_rows(x - parameters.b_dec, parameters.encoder, parameters.b_enc, 2)
    residual = x - (code.to_dense(32) @ parameters.decoder + parameters.b_dec)

    def unexplained(p: Parameters) -> float:
        z = ((x - p.b_dec) @ p.encoder[dead].T + p.b_enc[dead]).relu()
        return float((residual - z @ p.decoder[dead]).pow(2).sum())

    assert unexplained(moved) < unexplained(parameters)


def test_module_loss_scales_input_and_projects_decoder_gradient() -> None:
    sae = TopKSAE(SAEConfig(d_in=6, d_sae=32, k=3, aux_alpha=0.5, k_aux=2)).double()
    x = make(seed=1)[1]
    sae.initialise(x)
    assert float((x * sae.scale).norm(dim=1).mean()) == pytest.approx(6**0.5)
    dead = torch.tensor([1, 2, 3])
    result, gradients = sae.loss(x, dead)
    parameters = Parameters(**sae.trained_tensors())
    loss, _, expected = reference(parameters, x * sae.scale, 3, dead, n_aux=2, alpha=0.5)
    remove_parallel(expected[1], parameters.decoder)
    torch.testing.assert_close(result.loss, loss)
    torch.testing.assert_close(list(gradients.values()), expected)
    along = (gradients["decoder"] * sae.W_dec.detach()).sum(1)
    assert float(along.abs().max()) < 1e-6  # rows were normalised in float32


@pytest.mark.parametrize(("d_sae", "k"), [(1024, 16), (1024, 4), (96, 3), (31, 5), (32, 32), (64, 1)])
def test_two_stage_top_k_is_exact(d_sae: int, k: int) -> None:
    pre = torch.randn(50, d_sae, generator=torch.Generator().manual_seed(0))
    values, indices = top_k(pre, k)
    assert torch.equal(values.sort(descending=True).values, pre.topk(k).values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_sparse_products_equal_dense_ones() -> None:
    g = torch.Generator().manual_seed(0)
    d_sae, rows, k, d = 20, 30, 4, 7
    code = encode_rows(
        torch.randn(rows, d, generator=g).double(),
        torch.randn(d_sae, d, generator=g).double(),
        torch.zeros(d_sae).double(),
        k,
        buffer=torch.empty(8, d_sae).double(),
    )
    assert bool((code.values >= 0).all())
    z = code.to_dense(d_sae)
    dictionary = torch.randn(d_sae, d, generator=g).double()
    other = torch.randn(rows, d, generator=g).double()
    torch.testing.assert_close(gather_sum(code.flat(), dictionary), z @ dictionary)
    dots = row_dots(code.flat(), other, dictionary)
    torch.testing.assert_close(dots, (other @ dictionary.T).gather(1, code.indices).view(-1))
    torch.testing.assert_close(ByFeature(code.flat(), d_sae).sum_rows(code.values.view(-1), other), z.T @ other)


def test_code_with_unused_slots_decodes_to_the_same() -> None:
    code = TopKCode(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[4, 1, 0]]))
    assert code.to_dense(6).tolist() == [[0, 0, 0, 0, 2.0, 0]]
