"""Reading and writing files so that a reader sees a whole file or none, and never runs what it reads.

Writers use a temporary name in the same folder, fsync, then rename. Readers check a safetensors header
themselves (size, names, shapes, dtypes, offsets that tile the file exactly) before the library maps it, and
cap the size of JSON.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import CorruptFile

MAX_JSON_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_TENSORS = 256
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "U8": 1,
    "I8": 1,
    "BOOL": 1,
}
_NUMPY_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
}


def fsync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut (a no-op where folders cannot be opened)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (
        PermissionError,
        IsADirectoryError,
    ):  # Windows refuses to open folders; the rename itself is still atomic
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed over `path`, on failure
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinity are refused by the encoder (ValueError)."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises CorruptFile when it is too large, not JSON, or not an object."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CorruptFile(f"{path} has {size} bytes; a JSON file of this package has at most {MAX_JSON_BYTES}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CorruptFile(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} holds a JSON {type(value).__name__}; expected an object.")
    return value


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def tensor_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Reads and checks the header of a safetensors file without loading it.

    Returns:
        name -> (dtype in the file's spelling, e.g. "F32", shape).

    Raises:
        CorruptFile: header too large, not JSON, too many tensors, unknown dtype, or offsets that do not tile
        the file.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        prefix = handle.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CorruptFile(
                f"{path} declares a header of {length} bytes in a file of {size}; expected a safetensors "
                "file with a header "
                f"of at most {MAX_HEADER_BYTES} bytes."
            )
        raw = handle.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        if len(entries) > MAX_TENSORS:
            raise CorruptFile(f"{path} declares {len(entries)} tensors; at most {MAX_TENSORS} are accepted.")
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        spans: list[tuple[int, int]] = []
        for name, entry in entries.items():
            shape = tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
            if min(shape, default=0) < 0 or end - begin != _ITEM_BYTES[entry["dtype"]] * int(
                np.prod(shape, dtype=object)
            ):
                raise CorruptFile(f"{path}: tensor {name!r} of shape {shape} does not fill its bytes {begin} to {end}.")
            spans.append((begin, end))
            found[name] = (entry["dtype"], shape)
    except CorruptFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptFile(f"{path} has an unreadable safetensors header: {type(error).__name__}: {error}.") from error
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise CorruptFile(
                f"{path}: tensor data has a gap or an overlap at byte {at} (next tensor starts at {begin})."
            )
        at = end
    if 8 + length + at != size:
        raise CorruptFile(f"{path} has {size} bytes; its header describes {8 + length + at}. Copy the file again.")
    return found


def expect_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Checks that a safetensors file holds exactly the named tensors with these shapes; returns name ->
    dtype.
    """
    found = tensor_header(path)
    if found.keys() != expected.keys():
        raise CorruptFile(f"{path} holds tensors {sorted(found)}; expected exactly {sorted(expected)}.")
    for name, shape in expected.items():
        if found[name][1] != tuple(shape):
            raise CorruptFile(f"{path}: tensor {name!r} has shape {found[name][1]}; expected {tuple(shape)}.")
    return {name: dtype for name, (dtype, _) in found.items()}


def create_tensor_file(path: Path, name: str, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Creates a safetensors file with one zero tensor and returns it memory-mapped, for arrays larger than
    memory.
    """
    data_bytes = int(np.dtype(dtype).itemsize) * int(np.prod(shape))
    entry = {"dtype": _NUMPY_NAMES[dtype], "shape": list(shape), "data_offsets": [0, data_bytes]}
    header = json.dumps({name: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format asks for 8-byte aligned data
    with path.open("wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        handle.truncate(8 + len(header) + data_bytes)
    return np.memmap(path, dtype=dtype, mode="r+", offset=8 + len(header), shape=shape)
