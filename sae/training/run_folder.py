"""The folder of a run: whose it is, and whether it is finished.

`run.json` names the run: its configuration, the data, how processes divided the work where there were several, and a
hash of these; and under "notes" what the run decided for itself and keeps to. It is written when the run claims the
folder, at each such decision, and, with the hash of the weights, when it is finished; so a folder is never taken for
another run's, and a finished run is believed only as long as its weights are the ones it wrote.
"""

import logging
from pathlib import Path
from typing import Any

from activations_store.storage.jsonio import content_hash
from sae._files import file_hash, read_json, write_json
from sae.errors import RunMismatch
from sae.interchange.folder import WEIGHTS_NAME
from sae.training.checkpoint import CheckpointFolder

_log = logging.getLogger(__name__)
RUN_NAME, METRICS_NAME, CHECKPOINT_NAME = "run.json", "metrics.json", "checkpoint"


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; created by `claim`.
        run: JSON values that decide the result: "config", "store", and "processes" where several train it.
    """

    def __init__(self, path: str | Path, run: dict[str, Any]) -> None:
        self.path = Path(path)
        self.run = run
        self.run_hash = content_hash(run)
        self.notes: dict[str, Any] = {}  # what the run decided: JSON values, known after `claim`
        self.checkpoints = CheckpointFolder(self.path / CHECKPOINT_NAME, self.run_hash)

    def claim(self, *, resume: bool) -> bool:
        """Makes the folder this run's; True if the run is already finished there.

        Args:
            resume: False replaces what the folder holds.

        Raises:
            RunMismatch: another run's folder.
        """
        path = self.path / RUN_NAME
        if resume and path.exists():
            found = read_json(path)
            if found.get("run_hash") != self.run_hash:
                raise RunMismatch(
                    f"{self.path} holds another run: {_difference(found, self.run)}. Choose another folder, or pass "
                    "resume=False to replace it."
                )
            self.notes = found.get("notes", {})
            return self._finished(found)
        if not resume:
            self.checkpoints.clear()
        self.path.mkdir(parents=True, exist_ok=True)
        self.notes = {}
        self._write()
        return False

    def note(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Records a decision of the run, which a later start finds in `notes`; returns it."""
        self.notes[name] = value
        self._write()
        return value

    def finish(self, metrics: dict[str, Any]) -> None:
        """Records that the weights in the folder are the run's result."""
        write_json(self.path / METRICS_NAME, metrics)
        self._write(weights_sha256=file_hash(self.path / WEIGHTS_NAME))
        self.checkpoints.clear()

    def metrics(self) -> dict[str, Any]:
        """What `finish` was given."""
        return read_json(self.path / METRICS_NAME)

    def _write(self, **more: str) -> None:
        notes = {"notes": self.notes} if self.notes else {}
        write_json(self.path / RUN_NAME, {**self.run, "run_hash": self.run_hash, **notes, **more})

    def _finished(self, found: dict[str, Any]) -> bool:
        weights = self.path / WEIGHTS_NAME
        if "weights_sha256" not in found or not weights.exists():
            return False
        if found["weights_sha256"] == file_hash(weights):
            return True
        _log.warning("%s is not the file that the finished run wrote; training again", weights)
        return False


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first few fields in which two runs differ, with both values."""
    parts = []
    for section, absent in (("config", {}), ("store", {}), ("processes", {"number": 1})):
        have, want = found.get(section, absent), wanted.get(section, absent)
        for key in sorted(have.keys() | want.keys()):
            if have.get(key) != want.get(key):
                parts.append(f"{section}.{key} is {have.get(key)!r} there and {want.get(key)!r} here")
    return "; ".join(parts[:4]) or "its hash differs"
