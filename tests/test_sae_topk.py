"""The TopK module: encoding, decoding, folding, checks."""

from typing import Any

import pytest
import torch

from sae import Architecture, SAEConfig, SparseDictionary, TopKSAE, TrainConfig
from sae.errors import ConfigError, ShapeMismatch


def random_sae(scale: float = 1.0) -> TopKSAE:
    g = torch.Generator().manual_seed(3)
    sae = TopKSAE(SAEConfig(d_in=8, d_sae=48, k=5), seed=1)
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(8, 48, generator=g))
        sae.b_enc.copy_(0.2 * torch.randn(48, generator=g))
        sae.b_dec.copy_(torch.randn(8, generator=g))
        sae.scale.fill_(scale)
    return sae


def test_satisfies_the_contract() -> None:
    sae = random_sae()
    assert isinstance(sae, SparseDictionary)
    assert isinstance(sae, Architecture)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 5, 4, 8)])
def test_encode_is_the_formula_in_any_shape(shape: tuple[int, ...]) -> None:
    sae = random_sae(scale=0.25)
    x = 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    pre = (x * 0.25 - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = pre * (pre >= pre.topk(5).values[..., -1:])
    torch.testing.assert_close(sae.encode(x), kept.relu() / 0.25)
    code = sae.encode_sparse(x)
    assert code.values.shape == code.indices.shape == (*shape[:-1], 5)
    torch.testing.assert_close(code.to_dense(sae.d_sae), sae.encode(x))
    torch.testing.assert_close(sae.decode_sparse(code), sae(x))
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae.encode(x) @ sae.W_dec + sae.b_dec / 0.25)


def test_decoder_rows_are_in_units_of_the_input_at_any_scale() -> None:
    sae = random_sae(scale=7.0)
    z = torch.zeros(1, 48)
    z[0, 3] = 2.5
    torch.testing.assert_close(sae.decode(z) - sae.decode(0 * z), 2.5 * sae.W_dec[3:4])
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


def test_folding_keeps_codes_and_reconstructions() -> None:
    sae = random_sae(scale=0.013)
    x = 100 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    folded = sae.folded()
    assert float(folded.scale) == 1.0
    torch.testing.assert_close(folded.encode(x), sae.encode(x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(folded(x), sae(x), rtol=1e-4, atol=1e-3)
    assert torch.equal(folded.W_dec, sae.W_dec)


def test_encode_and_decode_are_differentiable() -> None:
    sae = random_sae()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sae(x).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0


def test_wrong_width_is_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"width 8.*\(2, 9\)"):
        random_sae().encode(torch.zeros(2, 9))
    with pytest.raises(ShapeMismatch, match="48 features"):
        random_sae().decode(torch.zeros(2, 47))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 65}, "between 1 and d_sae = 64"),
        ({"architecture": "gated"}, "'gated'"),
        ({"d_in": 0}, "d_in is 0"),
        ({"d_in": "8"}, "whole number"),
        ({"aux_alpha": -1.0}, "push dead features away"),
    ],
)
def test_bad_sae_config(change: dict[str, Any], message: str) -> None:
    base: dict[str, Any] = {"d_in": 8, "d_sae": 64, "k": 4}
    with pytest.raises(ConfigError, match=message):
        SAEConfig(**(base | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expansion": 8}, "d_sae or expansion, not both"),
        ({"rows": None}, "rows or epochs, not both or neither"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"warmup": 0.9}, "more than the whole run"),
        ({"holdout": 1.0}, "share of the samples"),
        ({"branches": ()}, "None for all branches"),
    ],
)
def test_bad_train_config(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**({"site": "a:out", "d_sae": 64, "rows": 1000} | change))


def test_configs_round_trip_and_hash() -> None:
    config = TrainConfig("a:out", expansion=4, k=8, epochs=1.5, steps=(0, 3), branches=("cond",))
    again = TrainConfig.from_json(config.to_json())
    assert again == config
    assert again.content_hash == config.content_hash
    assert TrainConfig("a:out", expansion=4, k=9, epochs=1.5).content_hash != config.content_hash
    with pytest.raises(ConfigError, match="no field speed"):
        TrainConfig.from_json(config.to_json() | {"speed": 3})


def test_schedule_and_derived_values() -> None:
    config = TrainConfig("a:out", expansion=4, rows=100_000, batch_size=1000, warmup=0.1, decay=0.2)
    factors = [config.lr_factor(i, 100) for i in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:80] == pytest.approx([1.0] * 71)
    assert factors[99] == pytest.approx(0.05)
    assert config.peak_lr(2**14) == pytest.approx(8e-4)
    assert config.peak_lr(2**10) == pytest.approx(4 * 8e-4)
    sae = config.sae_config(d_in=10, rows_per_epoch=5000)
    assert (sae.d_sae, sae.dead_after, sae.n_aux) == (40, 10_000, 5)
    assert TrainConfig("a:out", d_sae=8, epochs=2, batch_size=100).n_batches(5000) == 100
