"""Directions on disk: a folder with ``direction.json`` and ``direction.safetensors``.

The JSON holds site, steps, frame and the whole provenance, the hash of the tensors' file, and the direction's own
content hash; reading checks both. Nothing is pickled. ``direction.json`` is written last: a folder without it holds no
direction.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from activations_store.errors import InvalidMetadata
from activations_store.storage.jsonio import canonical, parse
from probe.directions.direction import Direction
from probe.errors import DirectionExists, DirectionNotFound, InvalidDirection, ProbeError

FORMAT = "denoscope.direction"
VERSION = 1
JSON_FILE = "direction.json"
TENSOR_FILE = "direction.safetensors"


def save_direction(direction: Direction, folder: str | Path) -> Path:
    """Write a direction into a folder.

    Raises:
        DirectionExists: there is one already.
    """
    folder = Path(folder)
    if (folder / JSON_FILE).exists():
        raise DirectionExists(f"direction: {str(folder / JSON_FILE)!r} exists; choose another folder or remove it.")
    data = save({"basis": direction.basis.contiguous(), "scale": direction.scales.contiguous()})
    record = {
        "format": FORMAT,
        "version": VERSION,
        "hash": direction.hash,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        **direction.record(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((TENSOR_FILE, data), (JSON_FILE, canonical(record))):
        temporary = folder / (name + ".tmp")
        temporary.write_bytes(content)
        temporary.replace(folder / name)
    return folder


def load_direction(folder: str | Path) -> Direction:
    """Read what ``save_direction`` wrote.

    Raises:
        DirectionNotFound: the folder holds none.
        InvalidDirection: it is damaged, of a newer version, or its hash is another.
    """
    folder = Path(folder)
    try:
        text, data = (folder / JSON_FILE).read_bytes(), (folder / TENSOR_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DirectionNotFound(
            f"direction: {str(folder)!r} holds no {JSON_FILE} and {TENSOR_FILE}; give what save_direction wrote."
        ) from error
    try:
        record = parse(text, JSON_FILE)
        if record["format"] != FORMAT or record["version"] > VERSION:
            raise InvalidDirection(
                f"direction: {str(folder)!r} has format {record['format']!r} version {record['version']!r}; this "
                f"denoscope reads {FORMAT!r} up to {VERSION}."
            )
        if hashlib.sha256(data).hexdigest() != record["tensors_sha256"]:
            raise InvalidDirection(f"direction: {TENSOR_FILE} in {str(folder)!r} does not belong to its {JSON_FILE}.")
        tensors: dict[str, torch.Tensor] = load(data)
        names = ("site", "steps", "timesteps", "frame", "provenance")
        found = Direction(basis=tensors["basis"], scale=tensors["scale"], **{name: record[name] for name in names})
        if found.hash != record["hash"]:
            raise InvalidDirection(f"direction: {JSON_FILE} in {str(folder)!r} was changed: its hash is another.")
        return found
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, InvalidMetadata) as error:
        if isinstance(error, ProbeError):
            raise
        raise InvalidDirection(f"direction: {str(folder)!r} is damaged: {type(error).__name__}: {error}.") from error
