"""Measurements as JSON: what was measured, on which machine, with which versions, with its uncertainty.

    {"name", "machine", "device", "versions", "git", "rows": [...], "ratios": {...}}

``rows`` are flat records of numbers and short texts, ``ratios`` the few named numbers that others quote, and
``config`` (optional) what determined the run. A share carries a 95 % Wilson interval (Wilson 1927), which
stays inside [0, 1] and is right for small counts; a mean over clustered values carries a bootstrap interval
over the clusters.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apps.errors import InvalidFile, InvalidOption

Z95 = 1.959963984540054
_LIBRARIES = ("denoscope", "torch", "diffusers", "transformers", "numpy", "zarr")
_KEYS = ("name", "machine", "device", "versions", "git", "rows", "ratios")


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Share of successes among n trials with its 95 % Wilson interval; (nan, 0, 1) without trials."""
    if not 0 <= successes <= n:
        raise InvalidOption(f"wilson: {successes} successes of {n}; expected 0 <= successes <= n.")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_mean(
    values: Iterable[float], clusters: Iterable[Any] | None = None, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean with a 95 % percentile interval; whole clusters (such as seeds) are resampled if given."""
    x = np.asarray(list(values), dtype=np.float64)
    if not len(x):
        return Interval(math.nan, math.nan, math.nan)
    names = np.arange(len(x)) if clusters is None else np.unique(np.asarray(list(clusters)), return_inverse=True)[1]
    sums, counts = np.bincount(names, weights=x), np.bincount(names).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(x.mean()), float(low), float(high))


@dataclass(frozen=True)
class Measurement:
    """One file of results.

    Attributes:
        name: what was measured, such as ``bench.canvas``.
        rows: flat records.
        ratios: the named numbers.
        device: where the model ran.
        config: what determined the run; empty for none.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    ratios: Mapping[str, float | None]
    device: str = "cpu"
    config: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the machine, versions and commit of now; NaN becomes null."""
        record = {
            "name": self.name,
            "machine": machine(),
            "device": self.device,
            "versions": versions(),
            "git": git_state(),
            "rows": [dict(row) for row in self.rows],
            "ratios": dict(self.ratios),
        }
        if self.config:
            record["config"] = dict(self.config)
        return json_ready(record)

    def write(self, path: str | Path) -> dict[str, Any]:
        """Write the file, whole or not at all, and return its content."""
        record = self.to_dict()
        write_json(path, record)
        return record


def read_measurement(path: str | Path) -> dict[str, Any]:
    """A measurement file.

    Raises:
        FileNotFoundError: there is none.
        InvalidFile: it is not JSON, or lacks a key of the format.
    """
    record = read_json(path)
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise InvalidFile(f"measurement {str(path)!r}: {', '.join(missing)} is missing; expected {', '.join(_KEYS)}.")
    return record


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system; nothing that names the computer or its user."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source checkout that was not installed
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this code runs from, and whether it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}


def json_ready(value: Any) -> Any:
    """JSON values from nested containers, numpy scalars and paths; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return value.as_posix()
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON so that the final name never holds a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(json_ready(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; raises ``InvalidFile`` for anything else."""
    try:
        value = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise InvalidFile(f"{str(path)!r} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidFile(f"{str(path)!r} holds a JSON {type(value).__name__}; expected an object.")
    return value


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # not every system says
        return None
