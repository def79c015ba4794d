"""Checkpoints that survive being killed at any instruction: safetensors + JSON in a folder that appears by
one rename.

    <out>/checkpoint/000001200/state.safetensors      tensors: weights, optimiser, counters
    <out>/checkpoint/000001200/state.json             batch, hash of the tensors, hash of the run

A checkpoint is believed only if its tensors have the recorded hash. The last good one is kept beside the
newest, so that a damaged newest file costs one interval, not the run.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from sae._files import file_hash, fsync_folder, read_json, tensor_header, write_json
from sae.errors import CorruptFile

_log = logging.getLogger(__name__)
_TENSORS, _STATE = "state.safetensors", "state.json"
KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `batch` steps."""

    batch: int
    tensors: dict[str, Tensor]


class CheckpointFolder:
    """The checkpoints of one run; `run_hash` names the run, so another run's files are never taken for ours."""

    def __init__(self, path: Path, run_hash: str) -> None:
        self._path = path
        self._run_hash = run_hash

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, then forgets all but the newest `KEEP`."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        target = self._path / f"{checkpoint.batch:09d}"
        temporary = self._path / f".{target.name}.{os.getpid()}.tmp"
        temporary.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, temporary / _TENSORS)
        with (temporary / _TENSORS).open("rb+") as handle:
            os.fsync(handle.fileno())
        state = {
            "batch": checkpoint.batch,
            "run_hash": self._run_hash,
            "tensors_sha256": file_hash(temporary / _TENSORS),
        }
        write_json(temporary / _STATE, state)
        if target.exists():  # the same batch again, after falling back from a damaged copy
            shutil.rmtree(target)
        temporary.rename(target)
        fsync_folder(self._path)
        for old in self._folders()[:-KEEP]:
            shutil.rmtree(old)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that is whole and ours, or None. Damaged ones are reported in the log and
        passed over.
        """
        for folder in reversed(self._folders()):
            try:
                return self._read(folder)
            except (CorruptFile, OSError) as error:
                _log.warning("checkpoint %s cannot be used, trying the one before: %s", folder, error)
        return None

    def clear(self) -> None:
        """Removes every checkpoint."""
        if self._path.exists():
            shutil.rmtree(self._path)

    def _read(self, folder: Path) -> Checkpoint:
        state = read_json(folder / _STATE)
        if state.get("run_hash") != self._run_hash:
            raise CorruptFile(f"{folder} belongs to another run.")
        batch = state.get("batch")
        tensor_header(folder / _TENSORS)
        if not isinstance(batch, int) or state.get("tensors_sha256") != file_hash(folder / _TENSORS):
            raise CorruptFile(f"{folder} does not hold the tensors that its {_STATE} records.")
        return Checkpoint(batch, load_file(folder / _TENSORS))

    def _folders(self) -> list[Path]:
        if not self._path.exists():
            return []
        return sorted(p for p in self._path.iterdir() if p.is_dir() and p.name.isdigit())

    def _remove_leftovers(self) -> None:
        for leftover in self._path.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
