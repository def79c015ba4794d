"""One training step by each contestant, on the same rows and their device: what `benchmarks.sae_step` times.

A step is loss, gradients, optimiser and whatever the library does after each update (unit decoder rows, counters), on
a batch that is already in memory. Libraries run through their own trainer where it takes a batch; sparsify's wants a
language model, so its `SparseCoder` is stepped by the calls of its trainer, with Adam like all the others.

The limits do only what no exact training step can avoid: the encoder's product with all rows, and the same with the
product of the weight gradient of a dense step.

On CUDA every library runs as it does there by itself: sparsify with its fused encoder, its Triton decoder and the
bfloat16 that it switches on; ours with PyTorch's and with Triton's sparse products.
"""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae import SAEConfig, TopKSAE
from sae.numerics.kernels import available, using
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


def ours(shape: Shape, rows: Tensor, matmul: str, kernels: str = "torch") -> Step:
    """This package's step."""
    config = SAEConfig(shape.d_in, shape.d_sae, shape.k, dead_after=DEAD_AFTER, matmul=matmul)
    sae = TopKSAE(config, seed=0).to(rows.device)
    sae.initialise(rows)
    adam = Adam(sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
    silent = torch.zeros(shape.d_sae, dtype=torch.int64, device=rows.device)

    def step(x: Tensor) -> None:
        with using(kernels):
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

    device = str(rows.device)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, device=device))
    options = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=shape.batch,
        device=device,
        lr=LR,
        lr_end=LR / 10,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(options, sae, data_provider=iter(())).step


def dictionary_learning(shape: Shape, rows: Tensor) -> Step:
    """dictionary_learning, `TopKTrainer.update`."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    options: dict[str, Any] = {"layer": 0, "lm_name": "none", "lr": LR, "device": str(rows.device)}
    trainer = TopKTrainer(10**6, shape.d_in, shape.d_sae, shape.k, **options)
    return lambda x: trainer.update(1, x)  # step 0 would add the geometric median


def sparsify(shape: Shape, rows: Tensor) -> Step:
    """eai-sparsify's SparseCoder with its trainer's calls."""
    from sparsify import SparseCoder, SparseCoderConfig, sparse_coder, utils

    # It takes Triton for decoding wherever Triton is installed, also for tensors on a CPU, where that cannot run.
    sparse_coder.decoder_impl = utils.decoder_impl if rows.is_cuda else utils.eager_decode
    coder = SparseCoder(shape.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k), device=rows.device)
    coder.b_dec.data.copy_(rows.mean(0))
    optimiser = torch.optim.Adam(coder.parameters(), lr=LR)
    since = torch.zeros(shape.d_sae, dtype=torch.int64, device=rows.device)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=None)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        fired = torch.zeros(shape.d_sae, dtype=torch.bool, device=rows.device)
        fired[out.latent_indices.flatten()] = True
        since.add_(x.shape[0])
        since[fired] = 0

    return step


def dense(shape: Shape, rows: Tensor) -> Step:
    """The textbook step in dense PyTorch: autograd, torch's fused Adam."""
    sae = TopKSAE(SAEConfig(shape.d_in, shape.d_sae, shape.k), seed=0).to(rows.device)
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
    encoder, bias, out = _product(shape, rows)
    return lambda x: torch.addmm(bias, x, encoder.T, out=out)


def gemm_and_gradient(shape: Shape, rows: Tensor) -> Step:
    """Limit of a dense step: the encoder's product and that of its weight gradient."""
    encoder, bias, out = _product(shape, rows)
    gradient = torch.empty_like(encoder)

    def step(x: Tensor) -> None:
        torch.addmm(bias, x, encoder.T, out=out)
        torch.mm(out.T, x, out=gradient)

    return step


def _product(shape: Shape, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder, bias and output of the encoder's product."""
    encoder = torch.randn(shape.d_sae, shape.d_in, device=rows.device)
    return encoder, encoder.new_zeros(shape.d_sae), encoder.new_empty(shape.batch, shape.d_sae)


def variants(device: torch.device) -> dict[str, tuple[str, str]]:
    """Name -> (encoder product, sparse products) of ours that a device has instructions for."""
    if device.type == "cuda":
        kernels = ("torch", "triton") if available(device) else ("torch",)
        return {f"ours_{matmul}_{name}": (matmul, name) for matmul in ("fp32", "bf16") for name in kernels}
    matmuls = ["fp32"]
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        matmuls.append("bf16")
    if torch.cpu._is_vnni_supported():
        matmuls.append("int8")
    return {f"ours_{matmul}": (matmul, "torch") for matmul in matmuls}


def contestants(device: torch.device) -> dict[str, Callable[[Shape, Tensor], Step]]:
    """Name -> maker of a step; libraries that are not installed are left out."""
    found: dict[str, Callable[[Shape, Tensor], Step]] = {
        "gemm": gemm,
        "gemm_and_gradient": gemm_and_gradient,
        "dense": dense,
    }
    for name, how in variants(device).items():
        found[name] = lambda shape, rows, how=how: ours(shape, rows, *how)
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
