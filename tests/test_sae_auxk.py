"""AuxK in training: where features that are needed have died, it brings them back; nothing else does.

A dictionary of 64 for data with 40 planted features starts with 40 of its own features asleep: their encoders are
scaled down, so that they are never among the k largest, but they still see the data. The 24 that are awake cannot
explain 40 planted ones, so the residual holds what the sleepers should become.

The converse is no test of AuxK. In a dictionary far too large for its data (512 features for these 40) the residual
holds nothing to learn: AuxK then fits the sleepers to noise, which takes them further below the k largest, and more
of them stay silent than without it. The dense autograd model in this file dies in exactly the same way.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sae import SAEConfig, TopKSAE
from sae.training.optimiser import Adam

D, PLANTED, D_SAE, AWAKE, K, BATCH, STEPS, LR, DEAD_AFTER, N_AUX = 24, 40, 64, 24, 4, 256, 300, 3e-3, 1024, 12


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    asleep: int  # features silent for DEAD_AFTER rows
    fvu: float  # mean of the last 20 batches
    decoder: torch.Tensor


def planted_batches() -> tuple[np.ndarray, list[torch.Tensor]]:
    """(PLANTED, D) unit rows and STEPS batches (BATCH, D) that hold about three of them a row."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(PLANTED, D))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    strengths = (rng.random((STEPS, BATCH, PLANTED)) < 3 / PLANTED) * rng.uniform(1, 2, (STEPS, BATCH, PLANTED))
    return features, [torch.from_numpy(x) for x in strengths @ features]


FEATURES, BATCHES = planted_batches()


def asleep_sae(alpha: float) -> TopKSAE:
    """The dictionary before training: features from AWAKE on are out of the k largest everywhere."""
    sae = TopKSAE(SAEConfig(D, D_SAE, K, aux_alpha=alpha, k_aux=N_AUX, dead_after=DEAD_AFTER), seed=0).double()
    sae.initialise(torch.cat(BATCHES[:8]))
    with torch.no_grad():
        sae.W_enc[:, AWAKE:] *= 1e-3
    return sae


def run_ours(alpha: float) -> Outcome:
    sae = asleep_sae(alpha)
    adam = Adam(sae.trained_tensors(), betas=(0.9, 0.999), eps=6.25e-10, clip_norm=1.0)
    silent, fvu = torch.zeros(D_SAE, dtype=torch.int64), []
    for x in BATCHES:
        result, gradients = sae.loss(x, (silent >= DEAD_AFTER).nonzero().squeeze(1))
        adam.update(gradients, LR)
        sae.after_update()
        silent += BATCH
        silent[result.fired > 0] = 0
        fvu.append(float(result.sse / result.variance))
    return Outcome(int((silent >= DEAD_AFTER).sum()), float(np.mean(fvu[-20:])), sae.W_dec.detach())


def run_reference(alpha: float) -> Outcome:
    """The same run with dense codes, autograd and torch's own Adam and clipping; shares only the starting weights."""
    sae = asleep_sae(alpha)
    encoder, decoder, b_enc, b_dec = leaves = [
        p.detach().clone().requires_grad_(True) for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)
    ]
    optimiser = torch.optim.Adam(leaves, lr=LR, eps=6.25e-10)
    silent, fvu = torch.zeros(D_SAE, dtype=torch.int64), []
    for batch in BATCHES:
        x = batch * sae.scale
        pre = (x - b_dec) @ encoder + b_enc
        top = pre.topk(K)
        xh = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) @ decoder + b_dec
        variance = (x - x.mean(0)).square().sum()
        loss = (x - xh).square().sum() / variance
        fvu.append(loss.item())
        dead = silent >= DEAD_AFTER
        n_dead = int(dead.sum())
        if n_dead and alpha > 0:
            pre = ((x - b_dec.detach()) @ encoder + b_enc).masked_fill(~dead, -torch.inf)
            aux = pre.topk(min(N_AUX, n_dead))
            guess = torch.zeros_like(pre).scatter(1, aux.indices, aux.values.relu()) @ decoder
            loss = loss + alpha * min(n_dead / N_AUX, 1) * ((x - xh).detach() - guess).square().sum() / variance
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert decoder.grad is not None
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            optimiser.step()
            decoder /= decoder.norm(dim=1, keepdim=True)
        silent += BATCH
        silent[top.indices[top.values > 0]] = 0
    return Outcome(int((silent >= DEAD_AFTER).sum()), float(np.mean(fvu[-20:])), decoder.detach())


def found(outcome: Outcome) -> int:
    """Planted features with a decoder row within cosine 0.9."""
    cosine = torch.from_numpy(FEATURES) @ outcome.decoder.T
    return int((cosine.max(1).values > 0.9).sum())


def test_revives_features_that_are_needed() -> None:
    without, with_aux = run_ours(0.0), run_ours(1 / 32)
    assert without.asleep == D_SAE - AWAKE  # nothing else wakes them
    assert with_aux.asleep <= (D_SAE - AWAKE) // 4
    assert with_aux.fvu < 0.75 * without.fvu
    assert found(with_aux) > found(without)


@pytest.mark.parametrize("alpha", [0.0, 1 / 32])
def test_whole_run_equals_dense_autograd(alpha: float) -> None:
    ours, theirs = run_ours(alpha), run_reference(alpha)
    assert ours.asleep == theirs.asleep
    assert ours.fvu == pytest.approx(theirs.fvu, rel=1e-4)
    torch.testing.assert_close(ours.decoder, theirs.decoder, rtol=0, atol=1e-3)
