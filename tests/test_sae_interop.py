"""Folders of other libraries, written by those libraries; and folders that somebody tampered with."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae import SAEConfig, TopKSAE, load_sae, open_sae, save_sae
from sae.errors import ConfigError, CorruptFile, NotAnSAE, SAEError, SAESiteMismatch, UnsupportedSAE
from sae.interchange.interop import OPENAI, SPARSIFY, sae_format

D, M, K = 12, 40, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows() -> torch.Tensor:
    return 3 * draw(50, D, seed=1) + 1


@pytest.fixture
def sparsify(tmp_path: Path) -> tuple[Path, Any]:
    """A folder that eai-sparsify saved, and the coder it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library and what it imports
        library = pytest.importorskip("sparsify")
        # With Triton installed it decodes by it, on a CPU too, where that cannot run.
        library.sparse_coder.decoder_impl = library.utils.eager_decode
        coder = library.SparseCoder(D, library.SparseCoderConfig(num_latents=M, k=K))
    with torch.no_grad():
        coder.encoder.weight.copy_(draw(M, D, seed=2))
        coder.encoder.bias.copy_(0.3 * draw(M, seed=3))
        coder.b_dec.copy_(draw(D, seed=4))
    coder.save_to_disk(tmp_path / "their")
    return tmp_path / "their", coder


def openai_tensors() -> dict[str, torch.Tensor]:
    decoder = draw(D, M, seed=6)
    return {
        "encoder.weight": draw(M, D, seed=5),
        "decoder.weight": decoder / decoder.norm(dim=0),
        "pre_bias": draw(D, seed=7),
        "latent_bias": 0.3 * draw(M, seed=8),
    }


@pytest.fixture
def openai(tmp_path: Path) -> Path:
    """A folder as sdxl-unbox writes it, with its weights as safetensors."""
    folder = tmp_path / "unbox"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"n_dirs_local": M, "d_model": D, "k": K, "auxk": 8}))
    save_file(openai_tensors() | {"stats_last_nonzero": torch.zeros(M, dtype=torch.int64)}, folder / "sae.safetensors")
    return folder


def test_sparsify_computes_the_same(sparsify: tuple[Path, Any]) -> None:
    folder, coder = sparsify
    ours, x = open_sae(folder, site="unet.up_blocks.1.attentions.1:out"), rows()
    assert sae_format(folder) == SPARSIFY == ours.metadata["read_from"]
    assert (ours.config.site, ours.config.k) == ("unet.up_blocks.1.attentions.1:out", K)
    with torch.no_grad():
        theirs = coder.encode(x)
        dense = torch.zeros(len(x), M).scatter(-1, theirs.top_indices, theirs.top_acts)
        torch.testing.assert_close(ours.encode(x), dense, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x), coder(x).sae_out, rtol=1e-5, atol=1e-5)


def test_sparsify_to_sae_lens_and_back_to_us(sparsify: tuple[Path, Any], tmp_path: Path) -> None:
    folder, coder = sparsify
    save_sae(open_sae(folder, site="a:out"), tmp_path / "ours")
    x = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae_lens = pytest.importorskip("sae_lens")
        lens = sae_lens.SAE.load_from_disk(tmp_path / "ours")
        with torch.no_grad():
            expected = coder(x).sae_out
            torch.testing.assert_close(lens(x), expected, rtol=1e-5, atol=1e-5)
        lens.save_model(tmp_path / "lens")
    for again in (tmp_path / "ours", tmp_path / "lens"):
        torch.testing.assert_close(open_sae(again)(x).detach(), expected, rtol=1e-5, atol=1e-5)
    assert load_sae(tmp_path / "ours").metadata["read_from"] == SPARSIFY


@pytest.mark.parametrize("rescale", [True, False])
def test_what_the_trainer_of_sae_lens_saves(tmp_path: Path, rescale: bool) -> None:
    """Its default leaves decoder rows of any length and scales codes by them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae_lens = pytest.importorskip("sae_lens")
        config = sae_lens.TopKTrainingSAEConfig(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=rescale)
        theirs = sae_lens.TopKTrainingSAE(config)
        with torch.no_grad():
            theirs.W_dec.copy_(draw(M, D, seed=9) * torch.linspace(0.5, 3, M)[:, None])
            theirs.W_enc.copy_(draw(D, M, seed=10))
            theirs.b_enc.copy_(0.3 * draw(M, seed=11))
            theirs.b_dec.copy_(draw(D, seed=12))
        theirs.save_inference_model(str(tmp_path))
        lens = sae_lens.SAE.load_from_disk(tmp_path)
        x = rows()
        with torch.no_grad():
            code, output = lens.encode(x), lens(x)
    assert json.loads((tmp_path / "cfg.json").read_text())["rescale_acts_by_decoder_norm"] is rescale
    ours = open_sae(tmp_path)
    torch.testing.assert_close(ours(x).detach(), output, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ours.encode(x).detach(), code, rtol=1e-5, atol=1e-4)
    if rescale:
        torch.testing.assert_close(ours.W_dec.detach().norm(dim=1), torch.ones(M))


@pytest.mark.parametrize("gate", ["standard", "jumprelu"])
def test_sae_lens_without_the_decoder_bias_at_the_input(tmp_path: Path, gate: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae_lens = pytest.importorskip("sae_lens")
        kind = {"standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig)}.get(gate)
        kind = kind or (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig)
        lens = kind[0](kind[1](d_in=D, d_sae=M, apply_b_dec_to_input=False))
        with torch.no_grad():
            lens.W_enc.copy_(draw(D, M, seed=10))
            lens.b_dec.copy_(draw(D, seed=12))
            if gate == "jumprelu":
                lens.threshold.copy_(0.5 + draw(M, seed=13).abs())
        lens.save_model(tmp_path)
        x = rows()
        with torch.no_grad():
            output = lens(x)
    torch.testing.assert_close(open_sae(tmp_path)(x).detach(), output, rtol=1e-5, atol=1e-4)


def standardised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (deviation + 1e-5), deviation, mean


def test_sparsify_on_standardised_rows(sparsify: tuple[Path, Any], tmp_path: Path) -> None:
    """SAeUron's `input_unit_norm`: the library's coder reads standardised rows, and what it makes is scaled back."""
    folder, coder = sparsify
    cfg(input_unit_norm=True, batch_topk=True)(folder)
    ours, x = open_sae(folder, site="unet.up_blocks.1.attentions.1:out"), rows()
    y, deviation, mean = standardised(x)
    with torch.no_grad():
        theirs = coder.encode(y)
        codes = torch.zeros(len(x), M).scatter(-1, theirs.top_indices, theirs.top_acts) * deviation
        output = coder(y).sae_out * deviation + mean
    z = ours.encode(x).detach()
    torch.testing.assert_close(z[:, :M], codes, rtol=1e-5, atol=1e-5)
    assert (ours.config.d_sae, ours.d_sae, ours.k) == (M + 3, M + 3, K)
    torch.testing.assert_close(ours.encode_sparse(x).to_dense(M + 3), z)
    torch.testing.assert_close(ours.decode(z), output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), output, rtol=1e-5, atol=1e-5)
    unit = torch.eye(M + 3)
    torch.testing.assert_close(ours.decode(unit) - ours.decode(0 * unit), ours.directions)
    assert bool((z >= 0).all())
    maps = x.view(5, 10, D)
    assert ours.decode_sparse(ours.encode_sparse(maps)).shape == maps.shape
    with pytest.raises(UnsupportedSAE, match="standardised one by one"):
        save_sae(ours, tmp_path / "no")


def test_openai_on_standardised_rows(openai: Path) -> None:
    plain, x = open_sae(openai), rows()
    cfg(normalize=True)(openai)
    y, deviation, mean = standardised(x)
    torch.testing.assert_close(open_sae(openai)(x), plain(y).detach() * deviation + mean, rtol=1e-5, atol=1e-5)


def test_openai_layout(openai: Path) -> None:
    """z = ReLU(TopK(E (x - b) + c)), xh = D z + b, written out."""
    t, x = openai_tensors(), rows()
    p = (x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    top = p.topk(K, dim=-1)
    z = torch.zeros_like(p).scatter(-1, top.indices, top.values.relu())
    ours = open_sae(openai)
    assert sae_format(openai) == OPENAI
    torch.testing.assert_close(ours.encode(x).detach(), z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x).detach(), z @ t["decoder.weight"].T + t["pre_bias"], rtol=1e-5, atol=1e-5)
    assert ours.metadata["settings"]["auxk"] == 8


def test_a_file_without_k_needs_one(openai: Path) -> None:
    (openai / "config.json").unlink()
    with pytest.raises(UnsupportedSAE, match="does not say how many features a row keeps"):
        open_sae(openai)
    assert open_sae(openai / "sae.safetensors", k=7).config.k == 7


def test_torch_files_are_not_opened_and_the_command_converts_them(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    path = folder / "state_dict.pth"
    torch.save(openai_tensors(), path)
    torch.save(torch.zeros(M), folder / "mean.pt")
    for given in (folder, path):
        with pytest.raises(UnsupportedSAE, match="is a pickle") as caught:
            open_sae(given)
    command = str(caught.value).split('python -c "')[1].split('" and open')[0]
    exec(command, {})  # noqa: S102 - the message's own words, which a person would paste
    assert load_file(folder / "sae.safetensors").keys() == openai_tensors().keys()
    (folder / "config.json").write_text('{"k": 4}')
    assert open_sae(folder).config.d_sae == M


def test_a_folder_of_ours_opens_as_load_sae_does(tmp_path: Path) -> None:
    save_sae(TopKSAE(SAEConfig(D, M, K, site="a:out"), seed=3), tmp_path)
    torch.testing.assert_close(open_sae(tmp_path)(rows()), load_sae(tmp_path)(rows()))
    with pytest.raises(SAESiteMismatch, match="trained at a:out"):
        open_sae(tmp_path, site="b:out")
    with pytest.raises(ConfigError, match="keeps 4 features"):
        open_sae(tmp_path, k=5)


def test_half_precision_is_read_as_float32(openai: Path) -> None:
    save_file({name: t.bfloat16() for name, t in openai_tensors().items()}, openai / "sae.safetensors")
    assert open_sae(openai).W_dec.dtype == torch.float32


def cfg(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = next(p for p in (folder / "cfg.json", folder / "config.json") if p.is_file())
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))

    return edit


def tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found: dict[str, Any] = load_file(folder / "sae.safetensors") | {name: value}
        save_file({n: t for n, t in found.items() if t is not None}, folder / "sae.safetensors")

    return edit


def header(shape: list[int], n_bytes: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        entry = {"encoder.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, n_bytes]}}
        raw = json.dumps(entry | {"b_dec": {"dtype": "F32", "shape": [0], "data_offsets": [n_bytes, n_bytes]}}).encode()
        (folder / "sae.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (cfg(activation="groupmax"), UnsupportedSAE, "activation to 'groupmax'"),
        (cfg(skip_connection=True), UnsupportedSAE, "skip_connection"),
        (cfg(transcode=True), UnsupportedSAE, "transcode"),
        (cfg(input_unit_norm="yes"), CorruptFile, "input_unit_norm to 'yes'"),
        (cfg(k=None), CorruptFile, "does not say k"),
        (cfg(k=M + 1), CorruptFile, "between 1 and d_sae"),
        (cfg(k="4"), CorruptFile, "whole number"),
        (cfg(k=True), CorruptFile, "whole number"),
        (cfg(d_in=10**12), CorruptFile, "d_in 1000000000000"),
        (cfg(num_latents=M - 1), CorruptFile, "num_latents 39"),
        (tensor("encoder.bias", None), CorruptFile, "lacks encoder.bias"),
        (tensor("W_skip", torch.zeros(D, D)), CorruptFile, "holds W_skip too"),
        (tensor("W_dec", torch.zeros(D, M)), CorruptFile, r"'W_dec' has shape \(12, 40\); expected \(40, 12\)"),
        (tensor("encoder.weight", torch.zeros(M)), CorruptFile, "expected two axes"),
        (tensor("b_dec", torch.zeros(D, dtype=torch.int32)), CorruptFile, "I32"),
        (tensor("b_dec", torch.full((D,), float("inf"))), CorruptFile, "NaN or infinity"),
        (header([2**30, 2**30], 2**62), CorruptFile, "header describes"),
        (header([2**20, 2**20], 16), CorruptFile, "does not fill"),
        (header([-1, 4], 16), CorruptFile, "does not fill"),
        (lambda f: (f / "cfg.json").write_text("[]"), CorruptFile, "expected an object"),
        (lambda f: (f / "cfg.json").unlink(), NotAnSAE, "cfg.json is missing"),
        (lambda f: (f / "sae.safetensors").unlink(), NotAnSAE, "no safetensors file"),
        (lambda f: (f / "sae.safetensors").write_bytes(b"{}"), CorruptFile, "declares a header"),
        (lambda f: save_file({"w": torch.zeros(1)}, f / "b.safetensors"), NotAnSAE, "give the one you mean"),
        (lambda f: save_file({"w": torch.zeros(1)}, f / "sae.safetensors"), UnsupportedSAE, r"holds tensors \['w'\]"),
    ],
)
def test_hostile_folders_give_one_error(
    sparsify: tuple[Path, Any], edit: Callable[[Path], object], error: type[SAEError], message: str
) -> None:
    edit(sparsify[0])
    with pytest.raises(error, match=message) as caught:
        open_sae(sparsify[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (cfg(n_dirs_local=M + 1), CorruptFile, "n_dirs_local 41"),
        (cfg(d_model=D + 1), CorruptFile, "d_model 13"),
        (cfg(normalize=1), CorruptFile, "normalize to 1"),
        (tensor("pre_bias", None), UnsupportedSAE, "OpenAI's TopK"),
        (tensor("latent_bias", torch.zeros(D)), CorruptFile, r"expected \(40,\)"),
    ],
)
def test_hostile_openai_folders(
    openai: Path, edit: Callable[[Path], object], error: type[SAEError], message: str
) -> None:
    edit(openai)
    with pytest.raises(error, match=message):
        open_sae(openai)


def test_more_weights_than_a_machine_holds_are_refused_by_their_header(
    openai: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.interchange.interop.MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(CorruptFile, match="at most"):
        open_sae(openai)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotAnSAE, match="There is no folder"):
        open_sae(tmp_path / "nowhere")
