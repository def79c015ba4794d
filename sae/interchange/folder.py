"""Saving and loading a dictionary as a folder that sae-lens also reads: `cfg.json` +
`sae_weights.safetensors`.

Input scale and affine input maps are folded into the weights first, so any reader of W_enc, W_dec, b_enc, b_dec (and
threshold) with p = (x - b_dec) W_enc + b_enc, xhat = z W_dec + b_dec gets the function that was trained. The file
names one of three gates, as sae-lens does; what trained it is in our part of the metadata:

    topk        z = ReLU(TopK_k(p))            topk
    jumprelu    z = p where p > threshold      jumprelu, batchtopk, matryoshka
    standard    z = ReLU(p)                    relu

Two options of sae-lens are folded into the weights as they are read, exactly: with n_i the length of decoder row i,

    rescale_acts_by_decoder_norm       W_enc n, b_enc n, W_dec / n      (what its TopK trainer saves by default)
    apply_b_dec_to_input = false       b_enc + b_dec W_enc

A dictionary that is not of this form (unit-norm input, or time in it) names the gate `denoscope`, which other libraries
refuse; its tensors are those of its parts, numbered, with what stands around them (`architectures.file_shapes`).

What is ours alone sits in `metadata.denoscope`. Nothing is unpickled; header, names, shapes and sizes are
checked before a byte is used.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sae._files import atomic_path, expect_tensors, file_hash, read_json, write_json
from sae.architectures.make import CLASSES, Dictionary, file_shapes, make_sae
from sae.config import SAEConfig
from sae.errors import ConfigError, CorruptFile, NewerFormat, NotAnSAE, SAESiteMismatch, UnsupportedSAE
from sae.interchange.standardised import StandardisedSAE

CONFIG_NAME = "cfg.json"
WEIGHTS_NAME = "sae_weights.safetensors"
FORMAT = 1
_OWN = "denoscope"  # the gate of what only this package computes
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
# The architecture that a file without our metadata is read as.
_PLAIN = {"topk": "topk", "jumprelu": "jumprelu", "standard": "relu"}
# Options of sae-lens that change the function, with the values that a dictionary here computes.
_FOLDED_OPTIONS = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False}
_EXPECTED_OPTIONS = {"normalize_activations": "none", "reshape_activations": "none"}


def save_sae(sae: Dictionary | StandardisedSAE, folder: str | Path) -> Path:
    """Writes `sae` into `folder` (created if needed) and returns the folder. Each file is replaced atomically.

    Raises:
        UnsupportedSAE: rows are standardised one by one before it reads them.
    """
    if isinstance(sae, StandardisedSAE):
        raise UnsupportedSAE(
            "This dictionary reads rows that are standardised one by one, which the folder format of sae-lens cannot "
            "say. Use it from the folder that it was read from."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in sae.folded().file_tensors().items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(tensors, temporary)
    write_json(folder / CONFIG_NAME, _cfg(sae, file_hash(folder / WEIGHTS_NAME)))
    return folder


def _gate(config: SAEConfig) -> str:
    plain = config.time == "shared" and config.input != "unit"
    return CLASSES[config.architecture].FILE_ARCHITECTURE if plain else _OWN


def _cfg(sae: Dictionary, weights_hash: str) -> dict[str, Any]:
    config = sae.config
    return {
        "architecture": _gate(config),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "k": config.k,
        "dtype": str(sae.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        **_FOLDED_OPTIONS,
        **_EXPECTED_OPTIONS,
        "metadata": {
            # Loaders from 6.0 on keep the rest of the metadata; without a version they drop it.
            "sae_lens_version": "6.0.0",
            "hook_name": config.site,
            "model_name": sae.metadata.get("store", {}).get("fingerprint", {}).get("name", ""),
            "denoscope": {
                **sae.metadata,
                "format": FORMAT,
                "config": config.to_json(),
                "weights_sha256": weights_hash,
            },
        },
    }


def load_sae(folder: str | Path, *, site: str | None = None, device: str | torch.device = "cpu") -> Dictionary:
    """Loads a dictionary saved by `save_sae` or by sae-lens.

    Args:
        folder: with cfg.json and sae_weights.safetensors.
        site: if given, the site the caller will use it at.
        device: where to put it; its dtype is the one that the folder names.

    Raises:
        NotAnSAE: a file is missing. CorruptFile: header, shapes or hash are wrong. UnsupportedSAE: another
            architecture, or an option that this package would not reproduce. SAESiteMismatch: it was trained at
            another site. NewerFormat.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise NotAnSAE(f"{folder} is not an SAE folder: {name} is missing. Train one with `denoscope train`.")
    cfg = read_json(folder / CONFIG_NAME)
    config, metadata = _read_config(folder, cfg)
    if site is not None and config.site and site != config.site:
        raise SAESiteMismatch(f"{folder} was trained at {config.site}; it was asked for {site}.")

    path = folder / WEIGHTS_NAME
    dtypes = expect_tensors(path, file_shapes(config))
    unknown = sorted(set(dtypes.values()) - _DTYPES.keys())
    if unknown:
        raise CorruptFile(f"{path} holds tensors of type {', '.join(unknown)}; weights are floating point.")
    expected_hash = metadata.pop("weights_sha256", None)
    if expected_hash is not None and expected_hash != file_hash(path):
        raise CorruptFile(
            f"{path} is not the file that {CONFIG_NAME} describes (SHA-256 differs). Copy the folder again."
        )

    sae = make_sae(config, metadata=metadata, folded=True).to(_dtype(folder, cfg.get("dtype", "float32")))
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CorruptFile(f"{path}: tensor {name!r} holds NaN or infinity.")
    sae.load_file_tensors(_fold_options(folder, cfg, tensors))
    return sae.to(device)


def _fold_options(folder: Path, cfg: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the same function without the options of sae-lens that can be folded."""
    option = {}
    for name, plain in _FOLDED_OPTIONS.items():
        option[name] = cfg.get(name, plain)
        if not isinstance(option[name], bool):
            raise CorruptFile(f"{folder / CONFIG_NAME} sets {name} to {option[name]!r}; expected true or false.")
    folded = dict(tensors)
    if not option["apply_b_dec_to_input"]:
        folded["b_enc"] = tensors["b_enc"] + tensors["b_dec"] @ tensors["W_enc"]
    if option["rescale_acts_by_decoder_norm"]:
        if "threshold" in tensors:
            raise UnsupportedSAE(f"{folder / CONFIG_NAME} rescales codes that have thresholds; that cannot be read.")
        length = tensors["W_dec"].norm(dim=1)
        if not bool((length > 0).all()):
            raise CorruptFile(f"{folder / WEIGHTS_NAME}: a decoder row is zero, and codes are scaled by its length.")
        folded["W_enc"] = tensors["W_enc"] * length
        folded["b_enc"] = folded["b_enc"] * length
        folded["W_dec"] = tensors["W_dec"] / length[:, None]
    return folded


def _dtype(folder: Path, name: object) -> torch.dtype:
    by_name = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
    plain = str(name).removeprefix("torch.")
    if plain not in by_name:
        raise UnsupportedSAE(f"{folder / CONFIG_NAME} asks for dtype {name!r}; known are {', '.join(sorted(by_name))}.")
    return by_name[plain]


def _read_config(folder: Path, cfg: dict[str, Any]) -> tuple[SAEConfig, dict[str, Any]]:
    """The configuration and our metadata from a cfg.json of ours or of sae-lens."""
    where = folder / CONFIG_NAME
    gate = cfg.get("architecture")
    if gate not in _PLAIN and gate != _OWN:
        raise UnsupportedSAE(f"{where} describes architecture {gate!r}; known are {', '.join(_PLAIN)}.")
    for name, expected in _EXPECTED_OPTIONS.items():
        if cfg.get(name, expected) != expected:
            raise UnsupportedSAE(f"{where} sets {name} to {cfg[name]!r}; only {expected!r} can be read exactly.")
    # Only TopK's function depends on k; another library's dictionary of another kind need not have one.
    required = ("d_in", "d_sae", "k") if gate == "topk" else ("d_in", "d_sae")
    missing = [name for name in required if name not in cfg]
    if missing:
        raise CorruptFile(f"{where} does not say {', '.join(missing)}.")
    outer = cfg.get("metadata")
    outer = outer if isinstance(outer, dict) else {}
    ours = outer.get("denoscope")
    ours = dict(ours) if isinstance(ours, dict) else {}
    version = ours.pop("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise NewerFormat(f"{where} has format {version!r}; this version reads up to {FORMAT}. Update denoscope.")
    stored = ours.pop("config", None)
    stored = dict(stored) if isinstance(stored, dict) else {"site": str(outer.get("hook_name") or "")}
    stored.setdefault("architecture", _PLAIN.get(gate, ""))
    try:
        config = SAEConfig.from_json({**stored, "k": cfg.get("k", 1), **{name: cfg[name] for name in required}})
    except (ConfigError, TypeError) as error:
        raise CorruptFile(f"{where} describes an impossible dictionary: {error}") from error
    if gate != _gate(config):
        raise CorruptFile(
            f"{where} names the gate {gate!r} and the architecture {config.architecture!r}, input {config.input!r} and "
            f"time {config.time!r}; they do not belong together."
        )
    return config, ours
