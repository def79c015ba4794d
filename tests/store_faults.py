"""Faults on purpose, at any size: kills, damage, full disks, several writers. Each function counts what it caused.

The normal tests call these with small numbers, `make test-long` with large ones. A child process imports once and
forks a writer for every task it is given, so that a kill costs no start of Python.
"""

import json
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from store_support import (
    BITS,
    FINGERPRINT,
    JOINED,
    PLAN,
    PYTHON,
    child_environment,
    create,
    sample_table,
    shard_arrays,
    small_spec,
    tree_hashes,
)

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter, errors

_MANY: dict[str, Any] = {"n_samples": 36, "samples_per_shard": 3, "n_steps": 2}
SPECS: dict[str, StoreSpec] = {
    "plain": small_spec(JOINED, SiteSpec("big", 256, 32), BITS, **_MANY),
    "zstd": small_spec(JOINED, SiteSpec("single", 40, 20, dtype="float32"), compression="zstd", **_MANY),
    "ragged": replace(small_spec(SiteSpec("q", 60, 30, dtype="int8"), JOINED, **_MANY), ragged=True),
}
"""Many shards and every dtype, so that a fault falls into every stage."""

WRITER = """
import json, os, random, resource, signal, sys, time
from pathlib import Path
import pyarrow.parquet
from store_faults import SPECS, inputs
from store_support import FINGERPRINT, PLAN, sample_table
from activations_store import AsyncShardWriter, StoreWriter, errors

def write(task, order):
    path, spec = Path(task["path"]), SPECS[task["spec"]]
    try:
        writer = StoreWriter.create(path, spec, sample_table(spec), fingerprint=FINGERPRINT, plan=PLAN)
    except errors.StoreExists:
        writer = StoreWriter.resume(path, spec=spec, fingerprint=FINGERPRINT, plan=PLAN)
    if task["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], task["limit"]))
    shards = order if order is not None else writer.pending()
    with writer, AsyncShardWriter(writer, max_pending=2) as background:
        for shard in shards:
            background.submit(shard, *cached[task["spec"]][shard])

def records(task):
    return len(list(Path(task["path"]).glob("commits/0*.json")))

def running(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

cached = {}
for line in sys.stdin:
    task = json.loads(line)
    name = task["spec"]
    cached.setdefault(name, [inputs(SPECS[name], shard) for shard in range(SPECS[name].n_shards)])
    wanted = records(task) + task["kill_after"][0] if task["kill_after"] else 0
    pids = []
    for order in task["orders"]:
        pid = os.fork()
        if pid == 0:
            try:
                write(task, order)
            except errors.DiskFull as error:
                Path(task["path"] + ".message").write_text(str(error))
                os._exit(3)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    if task["kill_after"]:
        while running(pids[0]) and records(task) < wanted:
            time.sleep(0.0005)
        time.sleep(task["kill_after"][1])
        os.kill(pids[0], signal.SIGKILL)  # not reaped yet, so the number is still its own
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


def inputs(spec: StoreSpec, shard: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays and masks of a shard; a ragged store lacks every map whose numbers add up to a multiple of 5."""
    arrays = shard_arrays(spec, shard)
    if not spec.ragged:
        return arrays, {}
    samples = np.array(spec.shard_samples(shard))
    grid = samples[:, None, None] + np.arange(spec.n_steps)[:, None] + np.arange(len(spec.branches))
    return arrays, {spec.sites[0].name: grid % 5 != 0}


def complete(path: Path, spec: StoreSpec) -> Path:
    """A complete store with `inputs`, written by one process and never interrupted."""
    with create(path, spec) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, *inputs(spec, shard))
    return path


class Writers:
    """Writers in other processes; a context manager."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [PYTHON, "-c", WRITER],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        path: Path,
        spec: str,
        orders: list[list[int] | None],
        *,
        kill_after: tuple[int, float] | None = None,
        limit: int = 0,
    ) -> list[int]:
        """Exit codes of one writer for each order of shards (None: what is pending); 3 is a full disk."""
        task = {"path": str(path), "spec": spec, "orders": orders, "kill_after": kill_after, "limit": limit}
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(task) + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._child:
            assert self._child.stdin is not None
            self._child.stdin.close()
            if kind is not None:  # it may be in the middle of something, or stuck
                self._child.kill()
        assert kind is not None or self._child.returncode == 0


def kill_and_resume(folder: Path, spec: str, kills: int, rng: random.Random) -> Counter[str]:
    """SIGKILL a writer at random moments, start it again until it is done, and over, until `kills` have landed.

    Raises:
        AssertionError: something committed was lost or damaged, or a finished store differs from one that was
            never killed.
    """
    whole = tree_hashes(complete(folder / "whole", SPECS[spec]))
    path, seen = folder / "killed", Counter[str]()
    committed, longest = 0, 0.05
    with Writers() as writers:
        while True:
            # The first kills fall anywhere from the first instruction on; later ones wait for a shard, so the run gets
            # on however slow the machine is.
            kill = None
            if seen["kills"] < kills:
                kill = (0 if seen["kills"] % 20 < 3 else rng.randint(1, 3), rng.uniform(0.0, longest))
            (code,) = writers.run(path, spec, [None], kill_after=kill)
            if code == 0:
                assert tree_hashes(path) == whole
                seen["stores"] += 1
                if seen["kills"] >= kills:
                    return seen
                # Done before enough kills landed (how fast depends on the machine): once more, with shorter delays.
                shutil.rmtree(path)
                committed, longest = 0, longest / 2
                continue
            assert code == -signal.SIGKILL
            seen["kills"] += 1
            if not (path / "store.json").exists():
                seen["in creation"] += 1
                continue
            store = ActivationStore.open(path)
            assert len(store.committed) >= committed  # what is committed never shrinks
            seen["while writing"] += bool(store.committed)
            committed = len(store.committed)
            problems = store.verify(full=seen["kills"] % 4 == 0)
            assert [p for p in problems if p.is_damage] == []
            seen["left files"] += bool(problems)


def write_together(folder: Path, runs: int, rng: random.Random) -> Counter[str]:
    """Two or four writers on one store, the same shards or disjoint ones, in any order: nothing lost or mixed."""
    seen = Counter[str]()
    wholes = {name: tree_hashes(complete(folder / f"whole-{name}", spec)) for name, spec in SPECS.items()}
    with Writers() as writers:
        for run in range(runs):
            name, n = rng.choice(sorted(SPECS)), rng.choice((2, 4))
            path, shards = folder / f"run{run}", list(range(SPECS[name].n_shards))
            # Made first: of two creations at once the second finds the first's store.
            create(path, SPECS[name]).close()
            if same := rng.random() < 0.7:
                orders = [rng.sample(shards, len(shards)) for _ in range(n)]
            else:
                orders = [shards[i::n] for i in range(n)]
            codes = writers.run(path, name, [list(order) for order in orders])
            assert codes == [0] * n
            assert tree_hashes(path) == wholes[name]
            seen["runs"] += 1
            seen["same shards" if same else "disjoint"] += 1
            shutil.rmtree(path)
    return seen


def fill_disk(folder: Path, runs: int, rng: random.Random) -> Counter[str]:
    """The kernel refuses a write at a random size: one message with path and bytes, a sound store, and it resumes."""
    seen = Counter[str]()
    with Writers() as writers:
        for run in range(runs):
            name = rng.choice(sorted(SPECS))
            path, largest = (
                folder / f"full{run}",
                max(SPECS[name].grid(s.name).file_bytes(0) for s in SPECS[name].sites),
            )
            (code,) = writers.run(path, name, [None], limit=rng.randrange(300, max(301, largest // 4)))
            assert code == 3  # the disk was full
            message = Path(f"{path}.message").read_text()
            assert "No room to write" in message
            assert str(path) in message
            assert "bytes" in message
            assert "\n" not in message
            seen["refused"] += 1
            store = ActivationStore.open(path)
            assert not [p for p in store.verify() if p.is_damage or p.kind == "leftover"]
            assert writers.run(path, name, [None]) == [0]
            whole = complete(folder / "again", SPECS[name])
            assert tree_hashes(path) == tree_hashes(whole)
            seen["resumed"] += 1
            shutil.rmtree(whole)
            shutil.rmtree(path)
    return seen


def found(path: Path) -> list[str]:
    """What is wrong with a store: the refusal to open it, or what verify says, each naming a file."""
    try:
        return [f"{p.path} {p.message}" for p in ActivationStore.open(path).verify() if p.is_damage]
    except errors.StoreError as error:
        return [str(error)]


def victim(folder: Path) -> Path:
    """A small store with every kind of file: shards, records, metadata, samples, statistics, a group."""
    spec = replace(small_spec(JOINED, SiteSpec("q", 9, 7, dtype="int8")), ragged=True)
    path = complete(folder / "victim", spec)
    ActivationStore.open(path).statistics(JOINED.name, covariance=False)
    group = replace(spec, sites=(BITS,), compression="zstd", ragged=False)
    with StoreWriter.extend(path, "more", group, fingerprint=FINGERPRINT, plan=PLAN) as writer:
        for shard in writer.pending():
            writer.write_shard(shard, shard_arrays(group, shard))
    assert found(path) == []
    return path


def kind_of(file: Path) -> str:
    """What a file of a store is."""
    return "shard" if file.name.startswith("c.") else file.parent.name if file.parent.name == "commits" else file.name


@contextmanager
def _replaced(file: Path, data: bytes) -> Iterator[None]:
    before = file.read_bytes()
    assert data != before  # the fault did happen
    file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(before)


def corrupt(path: Path, n: int, rng: random.Random) -> Counter[str]:
    """Flip bits, cut, lengthen and blank files of every kind: always found, with the file's name, and never read.

    Returns:
        Counts by kind of damage; "silent" counts what was not found or gave other numbers.
    """
    seen = Counter[str]()
    kinds: dict[str, list[Path]] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size):
        kinds.setdefault(kind_of(file), []).append(file)
    values = readable(path)
    for _ in range(n):
        file = rng.choice(kinds[rng.choice(sorted(kinds))])
        data, damage = file.read_bytes(), rng.choice(("flip", "flip", "cut", "longer", "zeroed"))
        bad = bytearray(data)
        if damage == "flip":
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        elif damage == "cut":
            del bad[rng.randrange(len(bad)) :]
        elif damage == "longer":
            bad += rng.randbytes(rng.randint(1, 40))
        else:
            at = rng.randrange(len(bad))
            bad[at : at + 512] = bytes(len(bad[at : at + 512]))
        if bad == data:  # zeros over zeros
            continue
        with _replaced(file, bytes(bad)):
            named = any(file.name in text for text in found(path))
            wrong = any(name in values and not equal(x, values[name]) for name, x in readable(path).items())
        seen["injected"] += 1
        seen[f"{damage} {kind_of(file)}"] += 1
        seen["silent"] += not named or wrong
    assert found(path) == []
    return seen


def readable(path: Path) -> dict[str, np.ndarray]:
    """Values of every site that can be read at all, by name."""
    values: dict[str, np.ndarray] = {}
    try:
        store = ActivationStore.open(path)
        for name in store.sites:
            try:
                values[name] = store.site(name).read(missing="nan")
            except errors.StoreError:
                continue
    except errors.StoreError:
        pass
    return values


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same shape and bits, NaN included."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def misplace(path: Path, n: int, rng: random.Random) -> Counter[str]:
    """Delete, swap, duplicate shards and records, or put back those of another plan: always found.

    Returns:
        Counts by kind; "silent" counts what was not found.
    """
    seen = Counter[str]()
    spec = ActivationStore.open(path).spec
    stale = path.with_name("stale")
    if not stale.exists():
        plan = {**PLAN, "steps": 4}
        with StoreWriter.create(stale, spec, sample_table(spec), fingerprint=FINGERPRINT, plan=plan) as writer:
            for shard in writer.pending():
                writer.write_shard(shard, {k: v + 1 for k, v in shard_arrays(spec, shard).items()})
    shards = sorted(path.glob("arrays/*/c.*"))
    records = sorted(path.glob("commits/*.json"))
    for _ in range(n):
        which = rng.choice((shards, records))
        fault = rng.choice(("delete", "swap", "duplicate", "roll back"))
        a, b = rng.sample(which, 2)
        copies = {file: file.read_bytes() for file in (a, b)}
        if fault == "delete" and which is shards:
            a.unlink()
        elif fault == "delete":
            continue  # a shard without a record is one that was not collected, which is no damage
        elif fault == "swap":
            a.write_bytes(copies[b])
            b.write_bytes(copies[a])
        elif fault == "duplicate":
            a.write_bytes(copies[b])
        else:
            a.write_bytes((stale / a.relative_to(path)).read_bytes())
        assert any(not f.exists() or f.read_bytes() != copies[f] for f in copies)  # the fault did happen
        seen["injected"] += 1
        seen[f"{fault} {kind_of(a)}"] += 1
        seen["silent"] += not any(a.name in text for text in found(path))
        for file, data in copies.items():
            file.write_bytes(data)
    assert found(path) == []
    return seen


def as_row(what: str, seen: Counter[str], seconds: float, seed: int) -> dict[str, Any]:
    """A row of the measurement file."""
    return {"what": what, "seed": seed, "seconds": round(seconds, 1), **dict(sorted(seen.items()))}
