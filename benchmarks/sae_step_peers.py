"""One training step by each contestant, on the same rows: what `benchmarks.sae_step` times.

A step is loss, gradients, optimiser and whatever the library does after each update (unit decoder rows, counters), on
a batch that is already in memory. Libraries run through their own trainer where it takes a batch; sparsify's wants a
language model, so its `SparseCoder` is stepped by the calls of its trainer, with Adam like all the others.

The limits do only what no exact training step can avoid: the encoder's product with all rows, and the same with the
product of the weight gradient of a dense step.
"""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae import SAEConfig, TopKSAE
from sae.training.optimiser import Adam

LR = 3e-4
DEAD_AFTER = 10_000_000


class Shape(NamedTuple):
    """Size of a step."""

    d_in: int
    d_sae: int
    k: int
    batch: int


Step = Callable[[Tensor], Any]


def ours(shape: Shape, rows: Tensor, matmul: str) -> Step:
    """This package's step."""
    config = SAEConfig(shape.d_in, shape.d_sae, shape.k, dead_after=DEAD_AFTER, matmul=matmul)
    sae = TopKSAE(config, seed=0)
    sae.initialise(rows)
    adam = Adam(sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
    silent = torch.zeros(shape.d_sae, dtype=torch.int64)

    def step(x: Tensor) -> None:
        result, gradients = sae.loss(x, (silent >= DEAD_AFTER).nonzero().squeeze(1))
        adam.update(gradients, LR)
        sae.after_update()
        silent.add_(x.shape[0])
        silent[result.fired > 0] = 0

    return step


def saelens(shape: Shape, rows: Tensor) -> Step:
    """sae-lens, `SAETrainer.step` with its defaults."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k))
    options = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=shape.batch,
        lr=LR,
        lr_end=LR / 10,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(options, sae, data_provider=iter(())).step


def dictionary_learning(shape: Shape, rows: Tensor) -> Step:
    """dictionary_learning, `TopKTrainer.update`."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(10**6, shape.d_in, shape.d_sae, shape.k, layer=0, lm_name="none", lr=LR, device="cpu")
    return lambda x: trainer.update(1, x)  # step 0 would add the geometric median


def sparsify(shape: Shape, rows: Tensor) -> Step:
    """eai-sparsify's SparseCoder with its trainer's calls."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(shape.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k))
    coder.b_dec.data.copy_(rows.mean(0))
    optimiser = torch.optim.Adam(coder.parameters(), lr=LR)
    since = torch.zeros(shape.d_sae, dtype=torch.int64)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=None)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        fired = torch.zeros(shape.d_sae, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        since.add_(x.shape[0])
        since[fired] = 0

    return step


def dense(shape: Shape, rows: Tensor) -> Step:
    """The textbook step in dense PyTorch: autograd, torch's fused Adam."""
    sae = TopKSAE(SAEConfig(shape.d_in, shape.d_sae, shape.k), seed=0)
    sae.initialise(rows)
    return dense_step(sae)


def dense_step(sae: TopKSAE) -> Step:
    """A dense autograd step of `sae` that shares nothing with its own; also the reference for the loss."""
    encoder, decoder, b_enc, b_dec = leaves = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec]
    optimiser = torch.optim.Adam(leaves, lr=LR, eps=6.25e-10, fused=True)

    def step(x: Tensor) -> None:
        x = x * sae.scale
        pre = (x - b_dec) @ encoder + b_enc
        top = pre.topk(sae.k, sorted=False)
        xh = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) @ decoder + b_dec
        loss = (x - xh).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        with torch.no_grad():
            assert decoder.grad is not None
            decoder.grad.sub_((decoder.grad * decoder).sum(1, keepdim=True) * decoder)
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            optimiser.step()
            decoder.div_(decoder.norm(dim=1, keepdim=True))
        optimiser.zero_grad()

    return step


def gemm(shape: Shape, rows: Tensor) -> Step:
    """Limit: the encoder's product, of the same library as ours."""
    encoder, bias = torch.randn(shape.d_sae, shape.d_in), torch.zeros(shape.d_sae)
    out = torch.empty(shape.batch, shape.d_sae)
    return lambda x: torch.addmm(bias, x, encoder.T, out=out)


def gemm_and_gradient(shape: Shape, rows: Tensor) -> Step:
    """Limit of a dense step: the encoder's product and that of its weight gradient."""
    encoder, bias = torch.randn(shape.d_sae, shape.d_in), torch.zeros(shape.d_sae)
    out, gradient = torch.empty(shape.batch, shape.d_sae), torch.empty(shape.d_sae, shape.d_in)

    def step(x: Tensor) -> None:
        torch.addmm(bias, x, encoder.T, out=out)
        torch.mm(out.T, x, out=gradient)

    return step


def contestants() -> dict[str, Callable[[Shape, Tensor], Step]]:
    """Name -> maker of a step; libraries that are not installed are left out."""
    found: dict[str, Callable[[Shape, Tensor], Step]] = {
        "ours_fp32": lambda shape, rows: ours(shape, rows, "fp32"),
        "gemm": gemm,
        "gemm_and_gradient": gemm_and_gradient,
        "dense": dense,
    }
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        found["ours_bf16"] = lambda shape, rows: ours(shape, rows, "bf16")
    if torch.cpu._is_vnni_supported():
        found["ours_int8"] = lambda shape, rows: ours(shape, rows, "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module, maker in (
            ("sae_lens", saelens),
            ("sparsify", sparsify),
            ("dictionary_learning", dictionary_learning),
        ):
            if find_spec(module) is not None:
                found[maker.__name__] = maker
    return found
