"""SIGKILL at random moments of writing; started again until done, the store equals one that was never killed."""

import random
import sys
from pathlib import Path

import pytest
from store_faults import kill_and_resume

KILLS = {"plain": 5, "zstd": 5, "ragged": 5}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("spec", sorted(KILLS))
def test_killed_and_resumed_is_bit_equal(tmp_path: Path, spec: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    seen = kill_and_resume(tmp_path, spec, KILLS[spec], random.Random(seed))
    print(dict(seen))
    assert seen["kills"] >= KILLS[spec]
    assert seen["while writing"] > 0
