"""Input maps: what they do to rows, that folding changes nothing, that gradients and files are right."""

import warnings
from pathlib import Path

import pytest
import torch
from sae_options import made, moments, rows

from sae import SAEConfig, load_sae, save_sae
from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.inputs import FLOOR, input_map
from sae.config import ARCHITECTURES, INPUTS
from sae.errors import ConfigError

D = 6


def test_whitening_gives_the_identity_covariance_and_moves_rows_least() -> None:
    x = rows(D, 400)
    own = moments(x)
    whitened = input_map(SAEConfig(D, 8, 2, input="whitened")).double()
    whitened.fit(own)
    y = whitened.into(x)
    torch.testing.assert_close(moments(y).covariance, torch.eye(D, dtype=torch.float64), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(whitened.out(y), x)
    # Any rotation of it whitens too; ZCA has the largest correlation with the rows (Kessy et al. 2018).
    kept = torch.trace((x - own.mean).T @ y)
    for seed in range(5):
        turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)).double())[0]
        assert float(kept) > float(torch.trace((x - own.mean).T @ (y @ turn)))


def test_directions_without_variance_are_not_blown_up() -> None:
    x = rows(D, 400)
    x[:, 0] = 1.5 * x[:, 1]  # one direction has no variance at all
    whitened = input_map(SAEConfig(D, 8, 2, input="whitened")).double()
    whitened.fit(moments(x))
    values = torch.linalg.eigvalsh(moments(whitened.into(x)).covariance)
    torch.testing.assert_close(values[1:], torch.ones(D - 1, dtype=torch.float64))
    assert float(values[0]) < 1e-6
    largest = float(torch.linalg.eigvalsh(moments(x).covariance)[-1])
    assert float(whitened.tensors()["whiten"].norm()) < D / (FLOOR * largest) ** 0.5
    torch.testing.assert_close(whitened.out(whitened.into(x)), x)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_saved_and_loaded_compute_the_same(architecture: str, kind: str, tmp_path: Path) -> None:
    sae, x = made(architecture, input=kind), rows(D, seed=3)
    assert isinstance(sae, SparseAutoencoder)
    folded = sae.folded()
    assert float(folded.scale) == 1.0
    assert folded.input.affine is (kind != "unit")
    assert bool(sae.encode(x).any())
    torch.testing.assert_close(folded.encode(x), sae.encode(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded(x), sae(x), rtol=1e-9, atol=1e-9)
    code = sae.encode_sparse(x)
    torch.testing.assert_close(code.to_dense(sae.d_sae), sae.encode(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.decode_sparse(code), sae(x), rtol=1e-9, atol=1e-9)
    # A code of 1 adds a row of `directions`, folded or not.
    z = torch.eye(24, dtype=torch.float64)
    for each in (sae, folded):
        torch.testing.assert_close(each.decode(z) - each.decode(0 * z), each.directions)

    again = load_sae(save_sae(sae, tmp_path))
    assert again.config == sae.config
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again(x), sae(x), rtol=1e-9, atol=1e-9)
    before = (tmp_path / "sae_weights.safetensors").read_bytes()
    assert (save_sae(again, tmp_path / "2") / "sae_weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", INPUTS)
def test_sae_lens_reads_what_is_affine_and_refuses_the_rest(kind: str, tmp_path: Path) -> None:
    sae = made("topk", input=kind)
    assert isinstance(sae, SparseAutoencoder)
    sae, x = sae.float(), rows(D, seed=3).float()
    save_sae(sae, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sae-lens and what it imports
        sae_lens = pytest.importorskip("sae_lens")
        if kind == "unit":
            with pytest.raises(Exception, match="denoscope"):
                sae_lens.SAE.load_from_disk(tmp_path)
            return
        theirs = sae_lens.SAE.load_from_disk(tmp_path)
        with torch.no_grad():
            torch.testing.assert_close(theirs(x), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_the_architecture_on_mapped_rows(architecture: str, kind: str) -> None:
    sae, x = made(architecture, input=kind), rows(D, seed=2)
    assert isinstance(sae, SparseAutoencoder)
    dead = torch.tensor([1, 5])
    plain = made(architecture)
    assert isinstance(plain, SparseAutoencoder)
    for name, tensor in sae.trained_tensors().items():
        plain.trained_tensors()[name].copy_(tensor)
    plain.scale.copy_(sae.scale)
    if hasattr(sae, "threshold"):
        plain.threshold.copy_(sae.threshold)  # type: ignore[operator]
    result, gradients = sae.loss(x, dead)
    expected, wanted = plain.loss(sae.input.into(x), dead)
    torch.testing.assert_close(result.loss, expected.loss)
    if kind == "unit":
        assert not bool(gradients["b_dec"].any())
        wanted["b_dec"].zero_()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name])


def test_unit_norm_forgets_lengths_and_gives_them_back() -> None:
    sae, x = made(input="unit"), rows(D, seed=4)
    assert isinstance(sae, SparseAutoencoder)
    mean = sae.input.tensors()["mean"]
    longer = mean + 3 * (x - mean)
    torch.testing.assert_close(sae.encode(longer), 3 * sae.encode(x))
    torch.testing.assert_close(sae(longer) - mean, 3 * (sae(x) - mean))
    at_mean = sae.encode(mean[None])
    assert bool(torch.isfinite(at_mean).all())
    torch.testing.assert_close(sae(mean[None]), mean[None])


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="'standardised'; expected one of raw, centred, unit, whitened"):
        SAEConfig(4, 8, 2, input="standardised")
    with pytest.raises(ConfigError, match="shift of film"):
        SAEConfig(4, 8, 2, input="unit", time="film", levels=(0.0,))
    with pytest.raises(ConfigError, match="gain of film"):
        SAEConfig(4, 8, 2, architecture="relu", time="film", levels=(0.0,))
    with pytest.raises(ConfigError, match="a crosscoder normalises each of its blocks"):
        SAEConfig(4, 8, 2, input="whitened", blocks=(("a", None, 4),))
    assert "input" not in SAEConfig(4, 8, 2).to_json()
    config = SAEConfig(4, 8, 2, blocks=(("a", None, 1), ("b", 3, 3)))
    assert SAEConfig.from_json(config.to_json()) == config
