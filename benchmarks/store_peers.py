"""The contestants of `benchmarks.store`: one small class each, with the same six operations on the same numbers.

Data: maps of 256 tokens x 1,280 channels, float16, 10 steps, 40 samples a file. Every contestant stores all maps of a
list of samples; `shuffled` delivers batches of 4,096 float32 rows as a training loop would take them, except for the
raw file, which is the limit: positioned reads of whole maps in random order into one buffer, and nothing else.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

STEPS, TOKENS, CHANNELS, PER_FILE = 10, 256, 1280, 40
MAP_BYTES = TOKENS * CHANNELS * 2
BATCH, POOL_ROWS, IN_FLIGHT = 4096, 32768, 4
SITE = "unet.mid_block:out"


class Data:
    """The numbers: reproducible, different everywhere, as hard to compress as activations."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples
        self._base = np.random.default_rng(0).normal(size=(PER_FILE, STEPS, TOKENS, CHANNELS)).astype(np.float16)

    @property
    def n_maps(self) -> int:
        """Maps in all."""
        return self.n_samples * STEPS

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return self.n_maps * MAP_BYTES

    def files(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first sample, (samples, steps, tokens, channels)) of each file's part."""
        for first in range(0, self.n_samples, PER_FILE):
            part = self._base[: min(PER_FILE, self.n_samples - first)]
            part[:, :, 0, 0] = first  # each part differs
            yield first, part


class Contestant:
    """What is measured. Paths are under `root`."""

    name = ""

    def __init__(self, root: Path, data: Data) -> None:
        self.root, self.data = root / self.name.replace(" ", "-"), data

    def write(self) -> None:
        """Store everything."""
        raise NotImplementedError

    def open(self) -> None:
        """Get ready to read; not timed."""

    def close(self) -> None:
        """Let go of every file; not timed."""

    def one(self, sample: int, step: int) -> np.ndarray:
        """One map."""
        raise NotImplementedError

    def row(self, sample: int, step: int, token: int) -> np.ndarray:
        """One row."""
        return self.one(sample, step)[token]

    def step(self, step: int) -> np.ndarray:
        """One step of all samples."""
        return np.stack([self.one(sample, step) for sample in range(self.data.n_samples)])

    def sequential(self) -> int:
        """Read everything in order; bytes read."""
        for sample in range(self.data.n_samples):
            for step in range(STEPS):
                self.one(sample, step)
        return self.data.n_bytes

    def prepare(self, seed: int) -> None:
        """Get ready for `shuffled`; not timed."""

    def shuffled(self, seed: int) -> int:
        """Shuffled rows, an epoch or nearly; bytes of stored values that were delivered."""
        order = np.random.default_rng(seed).permutation(self.data.n_maps)
        pool, done = np.empty((POOL_ROWS, CHANNELS), np.float16), 0
        per_pool = POOL_ROWS // TOKENS
        for start in range(0, len(order), per_pool):
            chosen = order[start : start + per_pool]
            for i, at in enumerate(chosen):
                pool[i * TOKENS : (i + 1) * TOKENS] = self.one(*divmod(int(at), STEPS))
            rows = len(chosen) * TOKENS
            shuffle = np.random.default_rng(start).permutation(rows)
            for first in range(0, rows, BATCH):
                done += len(pool[shuffle[first : first + BATCH]].astype(np.float32))
        return done * CHANNELS * 2

    def files(self) -> list[Path]:
        """Everything on disk."""
        return [p for p in self.root.rglob("*") if p.is_file()]


class Raw(Contestant):
    """One file, positioned reads: the limit."""

    name = "raw file"

    def write(self) -> None:
        self.root.mkdir()
        with (self.root / "data").open("wb") as file:
            for _, part in self.data.files():
                file.write(part.data)

    def open(self) -> None:
        self._fd = os.open(self.root / "data", os.O_RDONLY)

    def close(self) -> None:
        os.close(self._fd)

    def _read(self, at: int, out: np.ndarray) -> None:
        os.preadv(self._fd, [out.reshape(-1).view(np.uint8).data], at * MAP_BYTES)

    def one(self, sample: int, step: int) -> np.ndarray:
        out = np.empty((TOKENS, CHANNELS), np.float16)
        self._read(sample * STEPS + step, out)
        return out

    def row(self, sample: int, step: int, token: int) -> np.ndarray:
        offset = (sample * STEPS + step) * MAP_BYTES + token * CHANNELS * 2
        return np.frombuffer(os.pread(self._fd, CHANNELS * 2, offset), np.float16)

    def shuffled(self, seed: int) -> int:
        order = np.random.default_rng(seed).permutation(self.data.n_maps)
        buffers = np.empty((IN_FLIGHT, TOKENS, CHANNELS), np.float16)

        def work(lane: int) -> None:
            for at in order[lane::IN_FLIGHT]:
                self._read(int(at), buffers[lane])

        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            list(threads.map(work, range(IN_FLIGHT)))
        return self.data.n_bytes


class Denoscope(Contestant):
    """The store: committed shards, every chunk checked."""

    name = "denoscope"

    def write(self) -> None:
        import pyarrow as pa

        from activations_store import SiteSpec, StoreSpec, StoreWriter

        spec = StoreSpec(
            (SiteSpec(SITE, TOKENS, CHANNELS, (16, 16)),),
            self.data.n_samples,
            tuple(range(STEPS)),
            (0.0,) * STEPS,
            ("cond",),
            PER_FILE,
        )
        n = np.arange(self.data.n_samples)
        table = pa.table({"sample": n, "prompt": ["p"] * len(n), "seed": n})
        with StoreWriter.create(self.root, spec, table, fingerprint={}, plan={}) as writer:
            for first, part in self.data.files():
                writer.write_shard(first // PER_FILE, {SITE: part[:, :, None]})

    def open(self) -> None:
        from activations_store import ActivationStore

        self.store = ActivationStore.open(self.root)
        self._view = self.store.site(SITE)

    def one(self, sample: int, step: int) -> np.ndarray:
        return self._view.read(sample=sample, step=step)[0, 0, 0]

    def row(self, sample: int, step: int, token: int) -> np.ndarray:
        return self._view.read(sample=sample, step=step, token=token)[0, 0, 0, 0]

    def step(self, step: int) -> np.ndarray:
        return self._view.read(step=step)

    def close(self) -> None:
        self.store.close()

    def prepare(self, seed: int) -> None:
        from activations_store import RowLoader

        # Steady state: one pool is used up and the next one read. From here on every pool that is delivered is one
        # that is read, up to the last of the epoch, which `shuffled` waits for and does not deliver.
        self._loader = RowLoader(self.store, SITE, BATCH, seed=seed, pool_rows=POOL_ROWS, threads=IN_FLIGHT)
        self._rows = self._loader.tensors()
        for _ in range(POOL_ROWS // BATCH):
            next(self._rows)

    def shuffled(self, seed: int) -> int:
        done = 0
        with self._rows:
            for _ in range(self._loader.rows_per_epoch // POOL_ROWS - 2):
                for _ in range(POOL_ROWS // BATCH):
                    done += len(next(self._rows).x)
            next(self._rows)
        return done * CHANNELS * 2


class Zarr(Contestant):
    """zarr-python as it is: the same shards and chunks, its own reads and writes."""

    name = "zarr-python"

    def write(self) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        array = zarr.create_array(
            self.root,
            shape=(self.data.n_samples, STEPS, TOKENS, CHANNELS),
            dtype="float16",
            chunks=(1, 1, TOKENS, CHANNELS),
            shards=(PER_FILE, STEPS, TOKENS, CHANNELS),
            compressors=[Crc32cCodec()],
        )
        for first, part in self.data.files():
            array[first : first + len(part)] = part

    def open(self) -> None:
        import zarr

        self._array: Any = zarr.open_array(self.root, mode="r")

    def close(self) -> None:
        self._array = None

    def one(self, sample: int, step: int) -> np.ndarray:
        return self._array[sample, step]

    def row(self, sample: int, step: int, token: int) -> np.ndarray:
        return self._array[sample, step, token]

    def step(self, step: int) -> np.ndarray:
        return self._array[:, step]


class Datasets(Contestant):
    """Hugging Face datasets, read and mixed as sae-lens does with cached activations."""

    name = "datasets as sae-lens"

    def write(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({SITE: datasets.Array2D((TOKENS, CHANNELS), "float16")})
        parts = [
            datasets.Dataset.from_dict({SITE: part.reshape(-1, TOKENS, CHANNELS)}, features=features)
            for _, part in self.data.files()
        ]
        datasets.concatenate_datasets(parts).save_to_disk(self.root)

    def open(self) -> None:
        import datasets
        import torch

        self._dataset: Any = datasets.load_from_disk(str(self.root))
        self._dataset.set_format(type="torch", columns=[SITE], dtype=torch.float32)

    def close(self) -> None:
        self._dataset = None  # the files are mapped, and mapped pages are not dropped from the cache

    def one(self, sample: int, step: int) -> np.ndarray:
        return self._dataset[sample * STEPS + step][SITE].numpy()

    def step(self, step: int) -> np.ndarray:
        return self._dataset[list(range(step, self.data.n_maps, STEPS))][SITE].numpy()

    def sequential(self) -> int:
        for first in range(0, self.data.n_maps, 32):
            self._dataset[first : first + 32]
        return self.data.n_bytes

    def shuffled(self, seed: int) -> int:
        import torch
        from sae_lens.training.mixing_buffer import mixing_buffer

        def batches() -> Iterator[torch.Tensor]:
            for first in range(0, self.data.n_maps, 32):  # its store_batch_size_prompts
                yield self._dataset[first : first + 32][SITE].reshape(-1, CHANNELS)

        torch.manual_seed(seed)
        return sum(len(batch) for batch in mixing_buffer(POOL_ROWS, BATCH, batches())) * CHANNELS * 2


class Safetensors(Contestant):
    """Files of safetensors, one tensor each, read by slices."""

    name = "safetensors shards"

    def write(self) -> None:
        from safetensors.numpy import save_file

        self.root.mkdir()
        for first, part in self.data.files():
            save_file({"x": part.reshape(-1, TOKENS, CHANNELS)}, self.root / f"{first:06d}.safetensors")

    def open(self) -> None:
        from safetensors import safe_open

        files = [safe_open(path, "np") for path in sorted(self.root.iterdir())]
        self._slices = [file.get_slice("x") for file in files]

    def close(self) -> None:
        self._slices = []  # mapped too

    def _at(self, sample: int, step: int) -> tuple[Any, int]:
        return self._slices[sample // PER_FILE], (sample % PER_FILE) * STEPS + step

    def one(self, sample: int, step: int) -> np.ndarray:
        x, i = self._at(sample, step)
        return x[i : i + 1][0]

    def row(self, sample: int, step: int, token: int) -> np.ndarray:
        x, i = self._at(sample, step)
        return x[i : i + 1, token : token + 1][0, 0]


CONTESTANTS: tuple[Callable[[Path, Data], Contestant], ...] = (Raw, Denoscope, Zarr, Datasets, Safetensors)
