"""A store of given numbers at one site, for finders whose answer can be computed from the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter

SITE = "toy.layer:out"


def write_store(
    folder: Path, values: np.ndarray, labels: dict[str, Any] | None = None, site=SITE, grid=None, per_shard=None
) -> ActivationStore:
    """A store of values (samples, steps, tokens, channels), float32, with one branch."""
    n, steps, tokens, channels = values.shape
    spec = StoreSpec(
        (SiteSpec(site, tokens, channels, grid, dtype="float32"),),
        n_samples=n,
        timesteps=tuple(range(900, 900 - 100 * steps, -100)),
        log_snr=tuple(float(i) for i in range(steps)),
        branches=("cond",),
        samples_per_shard=per_shard or max(1, n // 3),
    )
    table = {"sample": np.arange(n), "prompt": ["x"] * n, "seed": np.arange(n)}
    table |= {f"label_{name}": [str(v) for v in given] for name, given in (labels or {}).items()}
    with StoreWriter.create(
        folder, spec, pa.table(table), fingerprint={"model_class": "Toy"}, plan={}, allow_nonfinite=True
    ) as writer:
        for shard in range(spec.n_shards):
            r = spec.shard_samples(shard)
            writer.write_shard(shard, {site: values[r.start : r.stop, :, None].astype(np.float32)})
    return ActivationStore.open(folder)


def cosine(a, b) -> float:
    """Of two arrays of any shape."""
    a, b = (torch.as_tensor(np.asarray(x)).double().flatten() for x in (a, b))
    return float(a @ b / a.norm() / b.norm())


def dense_pca(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    centred = x - x.mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    return vt[:k], s[:k] ** 2 / (len(x) - 1)
