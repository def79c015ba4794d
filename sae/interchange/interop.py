"""Reading dictionaries of other libraries. One function opens any folder; the files say which library wrote it.

    library                     files                                 what is computed
    sae-lens, this package      cfg.json, sae_weights.safetensors     see folder.py
    eai-sparsify, SAeUron       cfg.json, sae.safetensors             TopK_k(ReLU((x - b_dec) E^T + b)) W_dec + b_dec
    sdxl-unbox, OpenAI's TopK   a .safetensors, k in config.json      ReLU(TopK_k((x - b) E^T + c)) D^T + b

TopK of a ReLU and ReLU of a TopK are the same code, so the last two are TopK dictionaries here too, with W_enc = E^T.
Their decoder rows are taken as they are: scaling one to unit length would change which k entries are the largest.

SAeUron trained with BatchTopK and switches it off when it uses a dictionary: each row then keeps its own k largest.
That is what is read. Where each row is standardised first (SAeUron's `input_unit_norm`, OpenAI's `normalize`), the
dictionary has three features more (standardised.py). Skip connections, transcoders and GroupMax are other functions,
and are refused.

Nothing is unpickled. A torch file (.pt, .pth) is a pickle also where it is read with ``weights_only=True``, so it is
refused, with the command that turns it into safetensors. Names, shapes, dtypes and sizes are checked in the header
before a byte of weights is read.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae._files import read_json, tensor_header
from sae.architectures.make import Dictionary
from sae.architectures.topk import TopKSAE
from sae.config import SAEConfig
from sae.errors import ConfigError, CorruptFile, NotAnSAE, UnsupportedSAE
from sae.interchange.folder import CONFIG_NAME, WEIGHTS_NAME, load_sae
from sae.interchange.standardised import StandardisedSAE

OpenedSAE = Dictionary | StandardisedSAE
SAE_LENS, SPARSIFY, OPENAI = "sae-lens", "eai-sparsify", "openai-topk"
MAX_WEIGHT_BYTES = 64 * 2**30
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Tensors of each layout as (d_sae, d_in, ...): which axes they have.
_SPARSIFY = {"encoder.weight": "sd", "encoder.bias": "s", "W_dec": "sd", "b_dec": "d"}
_OPENAI = {"encoder.weight": "sd", "decoder.weight": "ds", "pre_bias": "d", "latent_bias": "s"}
# Counters and settings that trainers save beside the weights.
_IGNORED = ("stats_last_nonzero", "activation_state_dict.k")
# Options of sparsify and SAeUron that change the function; what may stand there.
_PLAIN_OPTIONS: dict[str, tuple[Any, ...]] = {
    "activation": ("topk",),
    "skip_connection": (False,),
    "transcode": (False,),
    "sample_topk": (False,),
}


def open_sae(
    path: str | Path, *, site: str | None = None, k: int | None = None, device: str | torch.device = "cpu"
) -> OpenedSAE:
    """Opens the dictionary in a folder, whichever library wrote it.

    Args:
        path: the folder, or for OpenAI's layout the safetensors file itself.
        site: the site it will be used at. Other libraries do not record one in our words, so it is taken over;
            a folder of this package that names another site is refused.
        k: features kept for a row, where no file says so (OpenAI's layout).
        device: where to put it.

    Returns:
        A dictionary in float32, or for sae-lens folders in the dtype that they name. ``metadata["read_from"]`` names
        the library of the others.

    Raises:
        NotAnSAE: nothing there is a dictionary. UnsupportedSAE: it computes something else, or is a pickle.
        CorruptFile: files disagree with each other or with themselves. SAESiteMismatch. ConfigError: k is another.
    """
    path = Path(path)
    kind = sae_format(path)
    if kind == SAE_LENS:
        sae = load_sae(path, site=site)
    else:
        weights = path if path.is_file() else _only_weights(path)
        sae = _read_sparsify(path, weights) if kind == SPARSIFY else _read_openai(weights, k)
    if k is not None and k != sae.config.k:
        raise ConfigError(f"{path} keeps {sae.config.k} features for a row; it was asked for {k}.")
    if site is not None and not sae.config.site:
        sae.config = replace(sae.config, site=site)
        sae.metadata["site"] = site
    return sae.to(device)


def sae_format(path: str | Path) -> str:
    """Which library wrote a folder: ``"sae-lens"``, ``"eai-sparsify"`` or ``"openai-topk"``.

    Raises:
        NotAnSAE, UnsupportedSAE, CorruptFile: see ``open_sae``.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix in _PICKLES:
            raise _pickle(path)
        weights = path
    elif not path.is_dir():
        raise NotAnSAE(f"There is no folder {path}. Train a dictionary with `denoscope train`.")
    elif (path / WEIGHTS_NAME).is_file() and (path / CONFIG_NAME).is_file():
        return SAE_LENS
    else:
        weights = _only_weights(path)
    names = set(tensor_header(weights))
    for kind, layout in ((SPARSIFY, _SPARSIFY), (OPENAI, _OPENAI)):
        # b_dec belongs to one layout, pre_bias to the other; what else is missing is told by the reader.
        if {"b_dec", "pre_bias"} & names & layout.keys():
            return kind
    raise UnsupportedSAE(
        f"{weights} holds tensors {sorted(names)[:8]}; known are the layouts of sae-lens ({CONFIG_NAME} and "
        f"{WEIGHTS_NAME}), eai-sparsify ({', '.join(_SPARSIFY)}) and OpenAI's TopK ({', '.join(_OPENAI)})."
    )


def _only_weights(folder: Path) -> Path:
    """The one safetensors file of a folder."""
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise NotAnSAE(f"{folder} holds {len(found)} safetensors files ({found[0].name}, ...); give the one you mean.")
    pickles = sorted(p for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        # sdxl-unbox keeps its statistics in files of their own.
        raise _pickle(next((p for p in pickles if "state" in p.name), pickles[0]))
    raise NotAnSAE(
        f"{folder} is not an SAE folder: it holds no safetensors file. Train one with `denoscope train`, or give the "
        "folder that sae-lens, eai-sparsify or sdxl-unbox wrote."
    )


def _pickle(path: Path) -> UnsupportedSAE:
    out = path.with_name("sae.safetensors")
    return UnsupportedSAE(
        f"{path} is a pickle, which this package does not open. If you trust it, convert it once with: python -c "
        "\"import torch; from safetensors.torch import save_file; s = torch.load('"
        f"{path}', map_location='cpu', weights_only=True); s = s.get('state_dict', s); "
        f"save_file({{n: t.contiguous() for n, t in s.items() if torch.is_tensor(t)}}, '{out}')\" and open "
        f"{out.parent}."
    )


def _read_sparsify(folder: Path, weights: Path) -> TopKSAE | StandardisedSAE:
    where = (folder if folder.is_dir() else folder.parent) / CONFIG_NAME
    cfg = _config(where)
    if not cfg:
        raise NotAnSAE(f"{where} is missing: it says how many features a row keeps.")
    for name, allowed in _PLAIN_OPTIONS.items():
        if cfg.get(name, allowed[0]) not in allowed:
            raise UnsupportedSAE(f"{where} sets {name} to {cfg[name]!r}; only {allowed[0]!r} can be read exactly.")
    tensors, d_sae, d_in = _tensors(weights, _SPARSIFY)
    found = {"d_in": d_in, "num_latents": d_sae}
    for name, size in found.items():
        if cfg.get(name) not in (None, 0, size):
            raise CorruptFile(f"{where} says {name} {cfg[name]!r}; {weights.name} has {size}.")
    if "k" not in cfg:
        raise CorruptFile(f"{where} does not say k.")
    return _topk(
        where,
        SPARSIFY,
        {"d_in": d_in, "d_sae": d_sae, "k": cfg["k"]},
        encoder=tensors["encoder.weight"],
        decoder=tensors["W_dec"],
        b_enc=tensors["encoder.bias"],
        b_dec=tensors["b_dec"],
        settings=cfg,
        standardised="input_unit_norm",
    )


def _read_openai(weights: Path, k: int | None) -> TopKSAE | StandardisedSAE:
    where = weights.parent / "config.json"
    cfg = _config(where)
    tensors, d_sae, d_in = _tensors(weights, _OPENAI)
    for name, size in {"d_model": d_in, "n_dirs_local": d_sae, "n_dirs": d_sae}.items():
        if cfg.get(name, size) != size:
            raise CorruptFile(f"{where} says {name} {cfg[name]!r}; {weights.name} has {size}.")
    if "k" not in cfg and k is None:
        raise UnsupportedSAE(f"{weights} does not say how many features a row keeps; give k, or {where} with a k.")
    return _topk(
        where if cfg else weights,
        OPENAI,
        {"d_in": d_in, "d_sae": d_sae, "k": cfg.get("k", k)},
        encoder=tensors["encoder.weight"],
        decoder=tensors["decoder.weight"].T,
        b_enc=tensors["latent_bias"],
        b_dec=tensors["pre_bias"],
        settings=cfg,
        standardised="normalize",
    )


def _config(path: Path) -> dict[str, Any]:
    """A JSON file, or nothing."""
    return read_json(path) if path.is_file() else {}


def _tensors(path: Path, layout: Mapping[str, str]) -> tuple[dict[str, Tensor], int, int]:
    """The tensors of a layout in float32, with (d_sae, d_in), after every check that the header allows."""
    header = tensor_header(path)
    missing = sorted(layout.keys() - header.keys())
    extra = sorted(header.keys() - layout.keys() - set(_IGNORED))
    if missing or extra:
        what = f"lacks {', '.join(missing)}" if missing else f"holds {', '.join(extra[:4])} too"
        raise CorruptFile(f"{path} {what}; expected exactly {', '.join(layout)}.")
    first = header["encoder.weight"][1]
    d_sae, d_in = first if len(first) == 2 else (0, 0)
    sizes = {"s": d_sae, "d": d_in}
    for name, axes in layout.items():
        dtype, shape = header[name]
        expected = tuple(sizes[axis] for axis in axes)
        if shape != expected or 0 in expected:
            raise CorruptFile(
                f"{path}: tensor {name!r} has shape {shape}; expected {expected if 0 not in expected else 'two axes'}."
            )
        if dtype not in _FLOATS:
            raise CorruptFile(f"{path}: tensor {name!r} is of type {dtype}; weights are floating point.")
    n_bytes = 4 * (2 * d_sae * d_in + d_sae + d_in)
    if n_bytes > MAX_WEIGHT_BYTES:
        raise CorruptFile(
            f"{path} describes {d_sae} features of width {d_in}: {n_bytes / 2**30:.0f} GiB in float32; at most "
            f"{MAX_WEIGHT_BYTES / 2**30:.0f} GiB are read."
        )
    loaded = load_file(path)
    tensors = {name: loaded[name].float() for name in layout}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CorruptFile(f"{path}: tensor {name!r} holds NaN or infinity.")
    return tensors, d_sae, d_in


def _topk(
    where: Path,
    kind: str,
    sizes: Mapping[str, Any],
    *,
    encoder: Tensor,
    decoder: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
    settings: Mapping[str, Any],
    standardised: str,
) -> TopKSAE | StandardisedSAE:
    """A TopK dictionary from (d_sae, d_in) encoder and decoder rows; `standardised` names the setting that says whether
    rows are brought to mean 0 and deviation 1 first.
    """
    if not isinstance(settings.get(standardised, False), bool):
        raise CorruptFile(f"{where} sets {standardised} to {settings[standardised]!r}; expected true or false.")
    try:
        config = SAEConfig(**sizes)
    except ConfigError as error:
        raise CorruptFile(f"{where} describes an impossible dictionary: {error}") from error
    sae = TopKSAE(config, metadata={"read_from": kind, "settings": dict(settings)})
    with torch.no_grad():
        sae.W_enc.copy_(encoder.T)
        sae.W_dec.copy_(decoder)
        sae.b_enc.copy_(b_enc)
        sae.b_dec.copy_(b_dec)
    return StandardisedSAE(sae) if settings.get(standardised) else sae
