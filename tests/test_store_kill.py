"""SIGKILL at random moments of writing; started again until done, the store equals one that was never killed."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_support import BITS, JOINED, PYTHON, child_environment, complete_store, small_spec, tree_hashes

from activations_store import ActivationStore, SiteSpec, StoreSpec

# The parent imports once and forks a writer for every line it is given, so that a kill costs no start of Python. A line
# is two numbers: the shards to wait for and the delay after them until the kill; a negative delay is no kill.
PARENT = """
import os, signal, sys, time
from pathlib import Path
from store_support import FINGERPRINT, PLAN, sample_table, shard_arrays
from test_store_kill import kill_spec
from activations_store import AsyncShardWriter, StoreWriter, errors
import pyarrow.parquet

path, spec = Path(sys.argv[1]), kill_spec()
table = sample_table(spec)
arrays = [shard_arrays(spec, shard) for shard in range(spec.n_shards)]

def write():
    try:
        writer = StoreWriter.create(path, spec, table, fingerprint=FINGERPRINT, plan=PLAN)
    except errors.StoreExists:
        writer = StoreWriter.resume(path, spec=spec, fingerprint=FINGERPRINT, plan=PLAN)
    with writer, AsyncShardWriter(writer, max_pending=2) as background:
        for shard in writer.pending():
            background.submit(shard, arrays[shard])

def records():
    return len(list(path.glob("commits/0*.json")))

def running(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

for line in sys.stdin:
    shards, delay = line.split()
    wanted = records() + int(shards)
    pid = os.fork()
    if pid == 0:
        try:
            write()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if float(delay) >= 0:
        while running(pid) and records() < wanted:
            time.sleep(0.0005)
        time.sleep(float(delay))
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def kill_spec() -> StoreSpec:
    """Many shards, three sites, so that a kill falls into every stage."""
    return small_spec(JOINED, SiteSpec("big", 256, 32), BITS, n_samples=60, samples_per_shard=3, n_steps=2)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    whole = tree_hashes(complete_store(tmp_path / "whole", kill_spec()).path)
    path = tmp_path / "killed"
    kills, committed, longest, stages = 0, 0, 0.05, set()
    parent = subprocess.Popen(
        [PYTHON, "-c", PARENT, str(path)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        while True:
            # The first kills fall anywhere from the first instruction on; later ones wait for a shard, so the run gets
            # on however slow the machine is.
            delay = rng.uniform(0.0, longest) if kills < 16 else -1.0
            parent.stdin.write(f"{0 if kills < 3 else rng.randint(0, 2)} {delay}\n")
            parent.stdin.flush()
            code = int(parent.stdout.readline())
            if code == 0:
                assert tree_hashes(path) == whole
                if kills >= 16:
                    break
                # Done before enough kills landed (how fast depends on the machine): once more, with shorter delays.
                shutil.rmtree(path)
                committed, longest = 0, longest / 2
                continue
            assert code == -signal.SIGKILL
            kills += 1
            if not (path / "store.json").exists():
                stages.add("killed in creation")
                continue
            store = ActivationStore.open(path)
            # What is committed never shrinks and is sound; what is not committed is not seen.
            assert len(store.committed) >= committed
            committed = len(store.committed)
            problems = store.verify(full=kills % 4 == 0)
            assert [p for p in problems if p.is_damage] == []
            stages |= {p.kind for p in problems} | ({"killed while writing"} if committed else set())
        parent.stdin.close()
    assert parent.returncode == 0
    print(f"{kills} kills, saw {sorted(stages)}")
    assert "killed while writing" in stages
