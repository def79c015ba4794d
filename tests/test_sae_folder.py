"""Saving, loading, refusing; and the same folder through sae-lens."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import SAEConfig, TopKSAE, load_sae, save_sae
from sae.errors import CorruptFile, NewerFormat, NotAnSAE, SAESiteMismatch, UnsupportedSAE


@pytest.fixture
def sae() -> TopKSAE:
    g = torch.Generator().manual_seed(5)
    made = TopKSAE(
        SAEConfig(d_in=12, d_sae=40, k=4, site="unet.mid_block:out", aux_alpha=0.1, dead_after=5000),
        metadata={"site": "unet.mid_block:out", "store": {"fingerprint": {"name": "canvas"}}},
    )
    with torch.no_grad():
        made.W_enc.add_(0.2 * torch.randn(12, 40, generator=g))
        made.b_enc.copy_(0.1 * torch.randn(40, generator=g))
        made.b_dec.copy_(torch.randn(12, generator=g))
        made.scale.fill_(0.37)
    return made


def rows() -> torch.Tensor:
    return 4 * torch.randn(64, 12, generator=torch.Generator().manual_seed(1))


def test_round_trip_folds_the_scale(sae: TopKSAE, tmp_path: Path) -> None:
    save_sae(sae, tmp_path / "new/folder")
    again = load_sae(tmp_path / "new/folder", site="unet.mid_block:out")
    assert isinstance(again, TopKSAE)
    assert float(again.scale) == 1.0
    assert again.config == sae.config
    assert again.metadata == sae.metadata
    torch.testing.assert_close(again(rows()), sae(rows()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.encode(rows()), sae.encode(rows()), rtol=1e-5, atol=1e-5)
    # Saving what was loaded changes nothing.
    save_sae(again, tmp_path / "again")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new/folder" / name).read_bytes()


def test_sae_lens_computes_the_same(sae: TopKSAE, tmp_path: Path) -> None:
    save_sae(sae, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sae-lens and what it imports
        sae_lens = pytest.importorskip("sae_lens")
        theirs = sae_lens.SAE.load_from_disk(tmp_path)
        x = rows()
        with torch.no_grad():
            torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(theirs(x), sae(x), rtol=1e-5, atol=1e-5)
        assert theirs.cfg.metadata.hook_name == "unet.mid_block:out"
        assert theirs.cfg.metadata.denoscope["config"]["dead_after"] == 5000
        # And back: what sae-lens saves, we read.
        theirs.save_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    torch.testing.assert_close(ours(x), sae(x), rtol=1e-5, atol=1e-5)
    assert ours.config.site == "unet.mid_block:out"


def edit(folder: Path, **changes: object) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in (cfg | changes).items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "gated"}, UnsupportedSAE, "'gated'"),
        ({"architecture": "jumprelu"}, CorruptFile, "do not belong together"),
        ({"normalize_activations": "layer_norm"}, UnsupportedSAE, "normalize_activations"),
        ({"apply_b_dec_to_input": "no"}, CorruptFile, "apply_b_dec_to_input"),
        ({"rescale_acts_by_decoder_norm": 1}, CorruptFile, "rescale_acts_by_decoder_norm"),
        ({"dtype": "int8"}, UnsupportedSAE, "dtype 'int8'"),
        ({"k": None}, CorruptFile, "does not say k"),
        ({"k": 41}, CorruptFile, "between 1 and d_sae"),
        ({"k": "four"}, CorruptFile, "whole number"),
        ({"d_sae": 41}, CorruptFile, r"shape \(12, 40\); expected \(12, 41\)"),
        ({"metadata": {"denoscope": {"format": 99}}}, NewerFormat, "format 99"),
        ({"metadata": {"denoscope": {"config": {"speed": 1}}}}, CorruptFile, "no field speed"),
        ({"metadata": {"denoscope": {"config": {"blocks": [["a"]]}}}}, CorruptFile, "expected .site, step or None"),
        ({"metadata": {"denoscope": {"config": {"time": "film", "levels": ["a"]}}}}, CorruptFile, "expected numbers"),
    ],
)
def test_config_that_does_not_fit(
    sae: TopKSAE, tmp_path: Path, changes: dict, error: type[Exception], message: str
) -> None:
    edit(save_sae(sae, tmp_path), **changes)
    with pytest.raises(error, match=message):
        load_sae(tmp_path)


def test_wrong_site_and_missing_files(sae: TopKSAE, tmp_path: Path) -> None:
    save_sae(sae, tmp_path)
    with pytest.raises(SAESiteMismatch, match="trained at unet.mid_block:out"):
        load_sae(tmp_path, site="unet.up_blocks.0:out")
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(NotAnSAE, match=r"sae_weights\.safetensors is missing"):
        load_sae(tmp_path)


def test_damaged_weights(sae: TopKSAE, tmp_path: Path) -> None:
    path = save_sae(sae, tmp_path) / "sae_weights.safetensors"
    good = path.read_bytes()

    path.write_bytes(good[:-4])
    with pytest.raises(CorruptFile, match="its header describes"):
        load_sae(tmp_path)
    path.write_bytes((2**40).to_bytes(8, "little") + good[8:])
    with pytest.raises(CorruptFile, match="declares a header of"):
        load_sae(tmp_path)
    path.write_bytes(good[:8] + b"x" + good[9:])
    with pytest.raises(CorruptFile, match="unreadable safetensors header"):
        load_sae(tmp_path)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptFile, match="SHA-256 differs"):
        load_sae(tmp_path)
    header = b'{"W_dec":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CorruptFile, match="unreadable safetensors header"):
        load_sae(tmp_path)
    path.write_bytes(b"abc")
    with pytest.raises(CorruptFile, match="declares a header"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(CorruptFile, match="expected an object"):
        load_sae(tmp_path)


def test_tensor_set_must_be_exact(sae: TopKSAE, tmp_path: Path) -> None:
    save_sae(sae, tmp_path)
    edit(tmp_path, metadata=None)
    path = tmp_path / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"extra": torch.zeros(1)}, path)
    with pytest.raises(CorruptFile, match=r"expected exactly \['W_dec'"):
        load_sae(tmp_path)
    save_file(tensors | {"b_dec": torch.full((12,), float("nan"))}, path)
    with pytest.raises(CorruptFile, match="'b_dec' holds NaN"):
        load_sae(tmp_path)
    save_file(tensors | {"b_dec": torch.zeros(12, dtype=torch.int32)}, path)
    with pytest.raises(CorruptFile, match="I32"):
        load_sae(tmp_path)
