"""What identifies a model, so that artefacts made with one are not used with another.

The weights hash is SHA-256 over every tensor of every component, by sorted name, with floating-point values
widened to float32. Widening fp16 and bf16 is exact, so a pipeline in memory, the fp16 folder it was saved to,
and that folder loaded as float32 agree; weights that were rounded on loading do not, because they are other
weights.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser

IDENTITY = ("model_class", "weights_hash", "scheduler", "scheduler_config_hash")
"""The keys that must agree for two fingerprints to mean the same model; the others are for the record."""

_LIBRARIES = ("torch", "diffusers", "transformers", "numpy")
_CHUNK = 1 << 24
_cache: WeakKeyDictionary[Pipeline, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


def fingerprint(pipe: Pipeline) -> dict[str, Any]:
    """Identity of a pipeline as plain JSON values.

    Returns:
        ``model_class``, ``name``, ``weights_hash``, ``scheduler``, ``scheduler_config_hash``, ``dtype`` of
        the denoiser, and ``versions`` of the libraries. Costs one pass over the weights (about a second per
        gigabyte); the hash is kept until a tensor changes.
    """
    config = {key: value for key, value in dict(pipe.scheduler.config).items() if not key.startswith("_")}
    _, module = denoiser(pipe)
    return {
        "model_class": type(pipe).__name__,
        "name": model_name(pipe),
        "weights_hash": weights_hash(pipe),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config_hash": _sha(json.dumps(config, sort_keys=True, default=str)),
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
    }


def fingerprint_hash(found: dict[str, Any]) -> str:
    """Short content hash over the identifying keys of a fingerprint."""
    return _sha(json.dumps({key: found.get(key) for key in IDENTITY}, sort_keys=True))[:16]


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The identifying keys in which two fingerprints differ, as ``key: found ..., expected ...`` lines."""
    return [
        f"{key}: found {found.get(key)!r}, expected {expected.get(key)!r}"
        for key in IDENTITY
        if found.get(key) != expected.get(key)
    ]


def model_name(pipe: Pipeline | str | Path) -> str:
    """A short name for a pipeline, or for what ``load_pipeline`` was given; never an absolute path.

    ``"canvas"`` for the embedded model, a folder's own name, a hub id as it is, ``"in-memory"`` for a
    pipeline without source.
    """
    source = pipe if isinstance(pipe, str | Path) else pipe.config.get("_name_or_path")
    if not source:
        return "in-memory"
    folder = Path(source)
    if not folder.is_dir():
        return str(source)
    canvas = _canvas_dir()
    if canvas is not None and folder.resolve() == canvas.resolve():
        return "canvas"
    return folder.resolve().name


def weights_hash(pipe: Pipeline) -> str:
    """SHA-256 over all weights of a pipeline, hexadecimal; independent of how exactly they are stored."""
    tensors = [
        (f"{part}.{name}", tensor)
        for part, module in sorted(pipe.components.items())
        if isinstance(module, torch.nn.Module)
        for name, tensor in sorted(module.state_dict().items())
    ]
    # In-place changes raise a tensor's version, and a replaced tensor lives elsewhere: either makes the
    # cached hash stale.
    state = tuple((name, tensor.data_ptr(), tensor._version, tensor.dtype) for name, tensor in tensors)
    cached = _cache.get(pipe)
    if cached is not None and cached[0] == state:
        return cached[1]
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        for start in range(0, flat.numel(), _CHUNK):
            part = flat[start : start + _CHUNK]
            part = part.float() if part.is_floating_point() else part.long()
            digest.update(part.cpu().contiguous().numpy().data)
    _cache[pipe] = (state, digest.hexdigest())
    return digest.hexdigest()


def _canvas_dir() -> Path | None:
    try:
        from probe.canvas import MODEL_DIR
    except ImportError:  # an installation without the embedded world has no such name to give
        return None
    return Path(MODEL_DIR)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
