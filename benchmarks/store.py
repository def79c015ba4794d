"""Speed of the activation store beside the limit and its peers, in one run: `python -m benchmarks.store --out FILE`.

    write          everything, to the disk (fsync counted)
    sequential     everything in order
    shuffled       an epoch of shuffled rows, as training takes them (raw: the same blocks, read only)
    map, row       one map or row at a random place, median
    step           one step of all samples

Each is measured with the files in the page cache (warm) and dropped from it (cold, by posix_fadvise), contestants
interleaved, medians and quartiles over rounds. CPU seconds are those of the process, all threads.
"""

import argparse
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from apps.measurement import Measurement
from benchmarks.store_peers import CONTESTANTS, STEPS, TOKENS, Contestant, Data

PLACES = 40
"""Maps and rows of which the median time is taken, a round."""


def main(argv: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description="Speed of the activation store.")
    parser.add_argument("--quick", action="store_true", help="0.4 GB and one round, within two minutes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all contestants")
    parser.add_argument("--samples", type=int, default=128, help="samples of 10 maps of 655,360 bytes")
    parser.add_argument("--folder", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(argv)
    rounds, samples = (1, 64) if options.quick else (options.rounds, options.samples)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = Data(samples)
        rows = measure(Path(folder), data, rounds)
        facts = open_a_million(Path(folder)) | quality(Path(folder), data)
    ratios = ratios_of(rows) | facts
    config = {"gb": data.n_bytes / 1e9, "rounds": rounds, "quick": options.quick, "peers": peer_versions()}
    Measurement("store", rows, ratios, config=config).write(options.out)
    for row in rows:
        print(f"{row['what']:<11} {row['cache']:<5} {row['who']:<21} {row['median']:10.3f} {row['unit']}")
    for name, value in ratios.items():
        print(f"{name}: {value:.3g}")


def measure(folder: Path, data: Data, rounds: int) -> list[dict[str, Any]]:
    """All operations of all contestants."""
    seen: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    contestants = [make(folder, data) for make in CONTESTANTS]
    for number in range(rounds):
        for who in contestants:
            shutil.rmtree(who.root, ignore_errors=True)
            drop_cache(folder)
            seen["write", "", who.name].append(timed(lambda who=who: written(who)))
        for who in contestants:
            who.open()
        for cache in ("warm", "cold"):
            for what in ("sequential", "shuffled", "step", "map", "row"):
                for who in contestants:
                    operation = operation_of(what, who, number)
                    if cache == "warm" and what == "sequential":
                        operation()  # brings the files in
                    if cache == "cold":
                        who.close()
                        gc.collect()
                        drop_cache(who.root)
                        who.open()
                    if what == "shuffled":
                        who.prepare(number)
                        if cache == "cold":
                            drop_cache(who.root)
                    seen[what, cache, who.name].append(operation())
        for who in contestants:
            who.close()
    return [summary(key, values, data) for key, values in seen.items()]


def operation_of(what: str, who: Contestant, number: int) -> Callable[[], tuple[float, float]]:
    """A function that measures one operation: (wall, CPU) seconds."""
    if what == "sequential":
        return lambda: timed(who.sequential)
    if what == "shuffled":
        return lambda: shuffled(who, number)
    if what == "step":
        return lambda: timed(lambda: who.step(number % STEPS))
    rng = np.random.default_rng(number)
    places = [(int(rng.integers(who.data.n_samples)), int(rng.integers(STEPS))) for _ in range(PLACES)]
    tokens = rng.integers(TOKENS, size=PLACES).tolist()

    def median() -> tuple[float, float]:
        calls = zip(places, tokens, strict=True)
        one = who.one if what == "map" else None
        times = [timed(lambda s=s, i=i, t=t: one(s, i) if one else who.row(s, i, t)) for (s, i), t in calls]
        wall, cpu = np.median(np.array(times), axis=0)
        return float(wall), float(cpu)

    return median


def shuffled(who: Contestant, number: int) -> tuple[float, float]:
    """(wall, CPU) seconds for as many bytes as everything, at the speed of what was delivered."""
    wall, cpu = time.perf_counter(), time.process_time()
    share = who.shuffled(number) / who.data.n_bytes
    return (time.perf_counter() - wall) / share, (time.process_time() - cpu) / share


def written(who: Contestant) -> None:
    """Write everything through to the disk."""
    who.write()
    for path in who.files():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def drop_cache(folder: Path) -> None:
    """Drop the folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # only clean pages are dropped
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(key: tuple[str, str, str], values: list[tuple[float, float]], data: Data) -> dict[str, Any]:
    """A row: GB/s, or milliseconds."""
    what, cache, who = key
    wall, cpu = np.array(values).T
    if what in ("write", "sequential", "shuffled"):
        unit, shown = "GB/s", data.n_bytes / 1e9 / wall
    else:
        unit, shown = "ms", wall * 1e3
    low, median, high = np.quantile(shown, (0.25, 0.5, 0.75))
    row = {"what": what, "cache": cache, "who": who, "unit": unit, "median": median, "low": low, "high": high}
    return row | {"cpu_s": float(np.median(cpu)), "rounds": len(values)}


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The named numbers. Without a suffix: cold, as data that is larger than memory is read."""
    value = {(row["what"], row["cache"], row["who"]): float(row["median"]) for row in rows}
    ours = "denoscope"

    def over(what: str, cache: str, who: str) -> float:
        return value[what, cache, ours] / value[what, cache, who]

    return {
        "shuffled_over_raw": over("shuffled", "cold", "raw file"),
        "shuffled_over_raw_warm": over("shuffled", "warm", "raw file"),
        "shuffled_over_saelens": over("shuffled", "cold", "datasets as sae-lens"),
        "shuffled_over_saelens_warm": over("shuffled", "warm", "datasets as sae-lens"),
        "shuffled_over_zarr": over("shuffled", "cold", "zarr-python"),
        "sequential_over_raw": over("sequential", "cold", "raw file"),
        "write_over_zarr": over("write", "", "zarr-python"),
        "map_ms_warm": value["map", "warm", ours],
        "map_ms_cold": value["map", "cold", ours],
        "row_ms_warm": value["row", "warm", ours],
    }


def quality(folder: Path, data: Data) -> dict[str, float]:
    """Effective batch size of the loader's order, as a share of a full permutation's."""
    from activations_store import ActivationStore, RowLoader, shuffle_quality
    from benchmarks.store_peers import BATCH, POOL_ROWS, SITE

    store = ActivationStore.open(folder / "denoscope")
    with RowLoader(store, SITE, BATCH, pool_rows=POOL_ROWS) as loader:
        found = shuffle_quality(loader)
    return {"effective_batch": found.effective, "effective_batch_over_full": found.ratio}


def open_a_million(folder: Path) -> dict[str, float]:
    """Seconds and bytes to open a store of a million samples, in a fresh process."""
    import pyarrow as pa

    from activations_store import SiteSpec, StoreSpec, StoreWriter

    n = 10**6
    spec = StoreSpec((SiteSpec("a", 256, 1280),), n, tuple(range(50)), (0.0,) * 50)
    numbers = np.arange(n)
    table = pa.table({"sample": numbers, "prompt": ["a prompt"] * n, "seed": numbers})
    path = folder / "million"
    StoreWriter.create(path, spec, table, fingerprint={}, plan={}, check_space=False).close()
    code = (
        "import resource, sys, time; from activations_store import ActivationStore\n"
        "a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; t = time.perf_counter()\n"
        "ActivationStore.open(sys.argv[1]); t = time.perf_counter() - t\n"
        "print(t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    seconds, kilobytes = done.stdout.split()
    return {"open_million_s": float(seconds), "open_million_mb": float(kilobytes) / 1e3}


def peer_versions() -> dict[str, str]:
    """Versions of what is compared."""
    return {name: version(name) for name in ("zarr", "datasets", "sae-lens", "safetensors", "pyarrow")}


if __name__ == "__main__":
    main()
