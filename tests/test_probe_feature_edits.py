"""Operations on features of a dictionary against their formulas, and dictionaries of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from intervention_support import D_SAE, HERE, D, K, draw, random_dictionary

from probe.errors import (
    InvalidIntervention,
)
from probe.interventions import (
    ClampFeatures,
    DeactivateFeatures,
    EqualNorm,
    Intervention,
    NormScaleFeatures,
    Op,
    ReplaceFlagged,
    ScaleFeatures,
    SetFeatures,
    TopKDictionary,
    ablate_features,
    add_feature,
    as_dictionary,
)
from probe.interventions.ops import StepContext, op_of, op_record


def test_where_no_code_changes_rows_keep_their_bits():
    x = torch.randn(2, 10, D, generator=torch.Generator().manual_seed(1))
    x[0, 0] = -0.0
    dictionary = random_dictionary()
    feature = int(dictionary.encode(x).sum((0, 1)).argmax())
    new = ScaleFeatures(dictionary, [feature], 0.0).apply(x, 1.0, HERE)
    off = dictionary.encode(x)[..., feature] == 0
    assert off.any() and not off.all()
    assert torch.equal(new[off].view(torch.int32), x[off].view(torch.int32))
    assert (new[~off] != x[~off]).any(-1).all()


def test_scale_features_writes_back_the_change_of_the_code():
    x = torch.randn(3, 20, D, generator=torch.Generator().manual_seed(2))
    dictionary = random_dictionary()
    features, gains, thresholds = (
        torch.tensor([0, 5, 11]),
        torch.tensor([-2.0, 0.0, 3.0]),
        torch.tensor([0.3, 0.0, 0.8]),
    )
    z = dictionary.encode(x)
    edited = z.clone()
    for f, gain, threshold in zip(features, gains, thresholds, strict=True):
        edited[..., f] = torch.where(z[..., f] > threshold, gain * z[..., f], z[..., f])
    expected = x + (edited - z) @ dictionary.W_dec
    op = ScaleFeatures(dictionary, features, gains, thresholds)
    torch.testing.assert_close(op.apply(x, 1.0, HERE), expected, rtol=1e-5, atol=1e-6)
    half = x + 0.5 * (edited - z) @ dictionary.W_dec
    torch.testing.assert_close(op.apply(x, 0.5, HERE), half, rtol=1e-5, atol=1e-6)


def test_set_features_and_add_feature():
    x = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(3))
    dictionary = random_dictionary()
    z = dictionary.encode(x)
    new = SetFeatures(dictionary, [2, 9], [1.5, 0.0]).apply(x, 1.0, HERE)
    change = (1.5 - z[..., 2:3]) * dictionary.W_dec[2] - z[..., 9:10] * dictionary.W_dec[9]
    torch.testing.assert_close(new, x + change, rtol=1e-5, atol=1e-6)
    steer = add_feature(dictionary, 2, unit="p99", scale=[4.0, 8.0])
    torch.testing.assert_close(steer.apply(x, -0.5, StepContext("s", 1, 0.0)), x - 4.0 * dictionary.W_dec[2])


@pytest.mark.parametrize(("d_sae", "k"), [(D_SAE, K), (203, 10), (203, 203)])
def test_few_features_have_the_codes_of_the_full_encoder(d_sae, k):
    g = torch.Generator().manual_seed(4)
    W = torch.randn(d_sae, D, generator=g)
    dictionary = TopKDictionary(W.T.clone(), torch.randn(d_sae, generator=g), W, torch.randn(D, generator=g), k=k)
    x = 2 * torch.randn(500, D, generator=g)
    z = dictionary.encode(x)
    assert k == d_sae or (z > 0).sum(-1).max() == k
    features = torch.tensor([0, 3, 7, 23])
    found = dictionary.encode_features(x, features, torch.zeros(4))
    torch.testing.assert_close(found, z[:, features], rtol=1e-5, atol=1e-5)
    assert torch.equal(found > 0, z[:, features] > 0)
    limit = float(z[:, features][z[:, features] > 0].median())
    found = dictionary.encode_features(x, features, torch.full((4,), limit))
    expected = torch.where(z[:, features] > limit, z[:, features], 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_clamp_and_ablate():
    dictionary = random_dictionary()
    W = dictionary.W_dec
    x = torch.randn(2, 9, D, generator=torch.Generator().manual_seed(0))
    z = dictionary.encode(x)
    features, low, high = torch.tensor([1, 5, 7]), torch.tensor([0.0, 0.4, 0.0]), torch.tensor([0.5, 0.8, 0.0])
    new = ClampFeatures(dictionary, features, low, high).apply(x, 1.0, HERE)
    change = z[..., features].clamp(low, high) - z[..., features]
    torch.testing.assert_close(new, x + change @ W[features], rtol=1e-4, atol=1e-5)
    gone = ablate_features(dictionary, features).apply(x, 1.0, HERE)
    torch.testing.assert_close(gone, x - z[..., features] @ W[features], rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidIntervention, match="0 <= low <= high"):
        ClampFeatures(dictionary, features, 1.0, 0.5)


# Dictionaries of others


class Scaled:
    """A TopK autoencoder that scales its input, as training code may."""

    def __init__(self, scale: float) -> None:
        inner = random_dictionary()
        self.scale, self.k, self.inner = scale, inner.k, inner
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = inner.W_enc, inner.b_enc, inner.W_dec, inner.b_dec

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(self.scale * x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(z) / self.scale


def test_as_dictionary_checks_that_codes_agree():
    x = torch.randn(9, D)
    assert torch.equal(as_dictionary(Scaled(1.0)).encode(x), random_dictionary().encode(x))
    with pytest.raises(InvalidIntervention, match="does not compute the code"):
        as_dictionary(Scaled(3.0))
    with pytest.raises(InvalidIntervention, match="object has no W_enc"):
        as_dictionary(object())


def test_the_trained_autoencoder_is_a_dictionary(tiny_pipe, tmp_path):
    sae = pytest.importorskip("sae")
    trained = sae.TopKSAE(sae.SAEConfig(d_in=D, d_sae=D_SAE, k=K, site="unet.mid_block:out"), seed=1)
    trained.initialise(torch.randn(256, D) + 1.0)
    x = torch.randn(50, D) + 1.0
    torch.testing.assert_close(as_dictionary(trained).encode(x), trained.encode(x).detach(), rtol=1e-4, atol=1e-5)
    live = draw(tiny_pipe, [Intervention("mid_block", ScaleFeatures(trained, torch.arange(8), -1.0))])
    held = draw(tiny_pipe, [Intervention("mid_block", ScaleFeatures(as_dictionary(trained), torch.arange(8), -1.0))])
    assert np.abs(live.astype(int) - held).max() <= 1


def test_every_operation_on_features_comes_back_from_its_record():
    d, features, times = random_dictionary(), torch.tensor([[1, 2, -1], [3, 4, 5]]), (999, 500)
    ops: list[Op] = [
        ScaleFeatures(d, features, -2.0, 0.1, times),
        SetFeatures(d, features, 1.0, times),
        ClampFeatures(d, features, 0.1, 0.2, times),
        NormScaleFeatures(d, features, -1.0, 0.1, times),
        ReplaceFlagged(d, features, 0.5, 3, times),
        DeactivateFeatures(d, [1, 2], -3.0, 0.5, keep_error=False),
        EqualNorm(ScaleFeatures(d, features, 0.0), 2),
    ]
    x = 3 * torch.randn(2, 9, D, generator=torch.Generator().manual_seed(1))
    for op in ops:
        tensors: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor, tensors: list[torch.Tensor] = tensors) -> str:
            tensors.append(tensor.clone())
            return str(len(tensors) - 1)

        record = json.loads(json.dumps(op_record(op, pack)))
        again = op_of(record, lambda name, tensors=tensors: tensors[int(name)])
        assert type(again) is type(op) and getattr(again, "timesteps", None) == getattr(op, "timesteps", None)
        edited = op.apply(x, 1.0, HERE)
        torch.testing.assert_close(again.apply(x, 1.0, HERE), edited, rtol=0, atol=0)
        assert not torch.equal(edited, x), op.kind
