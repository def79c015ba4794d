"""A small store with planted features, for the tests of `sae`.

Every row is mean + a few planted unit vectors with positive strengths. Feature c (c < number of objects) is on
exactly in the masked cells of samples whose label is object c, more strongly at later steps and only in the `cond`
branch; the others are background and know no label.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter

SITE = "unet.mid_block:out"
OBJECTS = ("bell", "boat", "cat", "cup")
STYLES = ("flat", "neon")


@dataclass(frozen=True)
class World:
    """The store and the truth behind it."""

    store: ActivationStore
    features: np.ndarray  # (n_features, d) unit rows
    mean: np.ndarray  # (d,)
    objects: np.ndarray  # (n_samples,) index into OBJECTS
    mask: np.ndarray  # (n_samples, tokens) bool: cells of the object


def plant(
    path: Path,
    *,
    n_samples: int = 48,
    n_steps: int = 4,
    grid: tuple[int, int] = (4, 4),
    d: int = 24,
    n_features: int = 40,
    samples_per_shard: int = 16,
    seed: int = 0,
) -> World:
    """Writes the store to `path`."""
    rng = np.random.default_rng(seed)
    tokens = grid[0] * grid[1]
    features = rng.normal(size=(n_features, d))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    mean = rng.normal(size=d)
    objects = np.arange(n_samples) % len(OBJECTS)
    rng.shuffle(objects)
    mask = rng.random((n_samples, tokens)) < 0.4
    mask[:, 0] = True  # no empty object
    shape = (n_samples, n_steps, 2, tokens)
    background = n_features - len(OBJECTS)
    strengths = np.zeros((*shape, n_features))
    strengths[..., len(OBJECTS) :] = (rng.random((*shape, background)) < 2.5 / background) * rng.uniform(
        1, 2, (*shape, background)
    )
    grows = np.linspace(1, 2, n_steps)[None, :, None]
    for c in range(len(OBJECTS)):
        strengths[:, :, 1, :, c] = ((objects == c)[:, None] & mask)[:, None] * grows
    x = (mean + strengths @ features).astype(np.float32)

    spec = StoreSpec(
        sites=(SiteSpec(SITE, tokens, d, grid, "float32"),),
        n_samples=n_samples,
        timesteps=tuple(range(1000, 0, -1000 // n_steps))[:n_steps],
        log_snr=tuple(np.linspace(-10, 5, n_steps)),
        samples_per_shard=samples_per_shard,
    )
    styles = [STYLES[i % 2] for i in range(n_samples)]
    table = pa.table(
        {
            "sample": np.arange(n_samples),
            "prompt": [f"a {OBJECTS[o]} in {s} style" for o, s in zip(objects, styles, strict=True)],
            "seed": np.arange(n_samples) + 100,
            "label_object": [OBJECTS[o] for o in objects],
            "label_style": styles,
        }
    )
    fingerprint = {"name": "planted", "weights_hash": "a" * 64}
    with StoreWriter.create(path, spec, table, fingerprint=fingerprint, plan={"seed": seed}) as writer:
        for shard in range(spec.n_shards):
            rows = spec.shard_samples(shard)
            writer.write_shard(shard, {SITE: x[rows.start : rows.stop]})
    return World(ActivationStore.open(path), features, mean, objects, mask)
