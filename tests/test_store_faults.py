"""Faults at the size of every change: several writers, full disks, damage of every kind of file, misplaced shards."""

import random
import sys
from pathlib import Path

import pytest
from store_faults import corrupt, fill_disk, misplace, victim, write_together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and resource limits")


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.slow
def test_several_writers_lose_and_mix_nothing(tmp_path: Path, rng: random.Random) -> None:
    assert write_together(tmp_path, 6, rng)["runs"] == 6


def test_a_full_disk_is_named_and_survived(tmp_path: Path, rng: random.Random) -> None:
    seen = fill_disk(tmp_path, 3, rng)
    assert (seen["refused"], seen["resumed"]) == (3, 3)


@pytest.mark.slow
def test_damage_of_every_kind_of_file_is_found(tmp_path: Path, rng: random.Random) -> None:
    seen = corrupt(victim(tmp_path), 200, rng)
    print(dict(seen))
    assert seen["injected"] > 180
    assert seen["silent"] == 0


def test_misplaced_shards_are_found(tmp_path: Path, rng: random.Random) -> None:
    seen = misplace(victim(tmp_path), 25, rng)
    print(dict(seen))
    assert seen["injected"] >= 15
    assert seen["silent"] == 0
