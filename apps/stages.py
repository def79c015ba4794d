"""Stages that are done once: each leaves a record of what it was made from, and is skipped while that still
holds.

The key of a stage is everything that decides its result, the hashes of earlier stages' outputs included. A
stage counts as done when its record has the same key hash and all its outputs are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.measurement import json_ready, read_json, write_json
from apps.progress import Clock
from apps.runs import Run

Say = Callable[[str], None]
"""Takes a line for people."""


@dataclass
class Stages:
    """Runs the stages of a run folder in order and says what happens.

    Attributes:
        run: the run folder.
        say: where lines go.
        n_stages: how many stages there will be, for the lines.
        seconds: time of each stage, those of earlier runs included.
    """

    run: Run
    say: Say
    n_stages: int
    seconds: dict[str, float] = field(default_factory=dict)
    _clock: Clock = field(default_factory=Clock)

    def do(
        self,
        name: str,
        title: str,
        key: Mapping[str, Any],
        work: Callable[[], Mapping[str, Any]],
        *,
        outputs: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Run a stage, or read what it left.

        Args:
            name: of the record.
            title: for people.
            key: JSON values that decide the result.
            work: does it; what it returns (JSON values) is kept in the record.
            outputs: files that must be there for the record to count.

        Returns:
            What ``work`` returned, now or earlier.
        """
        number = len(self.seconds) + 1
        label = f"[{self._clock}] {number}/{self.n_stages} {title}"
        path, wanted = self.run.stage(name), key_hash(key)
        if path.is_file() and all(output.exists() for output in outputs):
            record = read_json(path)
            if record.get("key_hash") == wanted and isinstance(record.get("result"), dict):
                self.seconds[name] = float(record.get("seconds", 0.0))
                self.say(f"{label}: done before")
                return record["result"]
        self.say(label)
        clock = Clock()
        result = json_ready(work())
        self.seconds[name] = seconds = clock.seconds
        write_json(path, {"key_hash": wanted, "key": key, "seconds": seconds, "result": result})
        return result

    @property
    def elapsed(self) -> Clock:
        """Time since the stages began in this process."""
        return self._clock


def key_hash(key: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, hexadecimal."""
    return hashlib.sha256(json.dumps(json_ready(key), sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
