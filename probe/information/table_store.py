"""Node tables on disk: an activation store with one sample an image, one step a node, one token a pixel.

    site "information:error"         channels: the columns        float32
    site "information:difference"    channels: the pairs          float32

A table has the dimensions of a store (sample, step, token, channel), so it is one: a killed run goes on with the shards
that are missing, another request is refused, every byte has its checksum, and other tools read the arrays. The plan
names columns, nodes and seed, from which levels and weights follow exactly; the sample table holds the conditions and
the clean samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
from activations_store.storage.jsonio import canonical
from probe.errors import InvalidRequest
from probe.information.columns import CAPTION, Column
from probe.information.edited import Edited
from probe.information.nodes import Nodes
from probe.information.table import NodeTable, Progress, check_request, evaluate, grid_of, n_tokens
from probe.model.eps_model import EpsModel
from probe.model.fingerprint import fingerprint
from probe.model.pipeline_eps import PipelineEps

KIND = "node table"
ERROR, DIFFERENCE = "information:error", "information:difference"


def collect_table(
    path: str | Path,
    model: EpsModel,
    x: torch.Tensor,
    columns: Sequence[Column],
    nodes: Nodes,
    *,
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> ActivationStore:
    """``measure`` into a store, or go on with one that was begun for the same request.

    Args:
        path: folder of the store.
        model, x, columns, nodes, seed, batch: see ``measure``. Conditions must be JSON values.
        progress: called with (done, total) evaluations, those of an earlier run included.

    Raises:
        InvalidRequest: arguments that do not fit together.
        activations_store.errors.PlanMismatch, FingerprintMismatch: the folder holds the table of another request.
        activations_store.errors.DiskFull: before anything is evaluated.
    """
    check_request(model, x, columns, nodes, batch)
    log_snr, _ = nodes.place(len(x))
    samples = _samples(x, columns, seed)
    spec = _spec(x, len(columns), log_snr.mean(0))
    plan = {
        "kind": KIND,
        "nodes": nodes.record(),
        "columns": [{"name": c.name, "model": c.model and denoiser_record(c.model)} for c in columns],
        "sample_shape": list(x.shape[1:]),
        "seed": seed,
        "request_sha256": _sha(*(samples.column(n).combine_chunks().to_pylist() for n in ("conditions", "x"))),
    }
    identity = {"fingerprint": denoiser_record(model), "plan": plan}
    if (Path(path) / "store.json").exists():
        writer = StoreWriter.resume(path, spec=spec, **identity)
    else:
        writer = StoreWriter.create(path, spec, samples, **identity)
    each = nodes.n * len(columns)
    with writer:
        pending = writer.pending()
        done = len(x) - sum(len(spec.shard_samples(shard)) for shard in pending)
        for shard in pending:
            images, before = spec.shard_samples(shard), done

            def tell(evaluated: int, before: int = before) -> None:
                if progress is not None:
                    progress(before * each + evaluated, len(x) * each)

            error, difference = evaluate(model, x, columns, log_snr, images, seed=seed, batch=batch, tell=tell)
            arrays = {ERROR: error, DIFFERENCE: difference}
            kept = {s.name: arrays[s.name][:, :, None].astype(np.float32) for s in spec.sites}
            writer.write_shard(shard, kept)
            done += len(images)
    return ActivationStore.open(path)


def open_table(path: str | Path, images: Sequence[int] | np.ndarray | None = None) -> NodeTable:
    """Read a table, or that of some images, into memory: every byte is checked on the way.

    Raises:
        InvalidRequest: the store is no node table.
        activations_store.errors.NotAStore, MissingSamples, CorruptShard: nothing there, not finished, or damaged.
    """
    store = ActivationStore.open(path)
    plan, spec = store.plan, store.spec
    if plan.get("kind") != KIND:
        raise InvalidRequest(f"open_table: {str(path)!r} holds activations, not a node table.")
    at = np.arange(spec.n_samples) if images is None else np.asarray(images)
    nodes = Nodes.from_record(plan["nodes"])
    log_snr, weight = nodes.place(spec.n_samples)
    error = store.site(ERROR).read(sample=at)[:, :, 0]
    if DIFFERENCE in store.sites:
        difference = store.site(DIFFERENCE).read(sample=at)[:, :, 0]
    else:
        difference = np.empty((*error.shape[:3], 0), error.dtype)
    x = np.stack(store.samples.column("x").to_numpy()).astype(np.float64)[at]
    names = tuple(c["name"] for c in plan["columns"])
    grid = spec.site(ERROR).grid
    return NodeTable(names, nodes, log_snr[at], weight[at], error, difference, x.shape[1], grid, x)


def denoiser_record(model: EpsModel) -> dict[str, Any]:
    """JSON values that name a denoiser: a pipeline's fingerprint, an edit's record, else class and hash of tensors."""
    if isinstance(model, PipelineEps):
        return fingerprint(model.pipe)
    if isinstance(model, Edited):
        return model.record()
    tensors = {name: v for name, v in sorted(vars(model).items()) if isinstance(v, torch.Tensor)}
    return {
        "model_class": type(model).__name__,
        "tensors_sha256": _sha(*({name: v.detach().cpu().tolist()} for name, v in tensors.items())),
    }


def _spec(x: torch.Tensor, n_columns: int, log_snr: np.ndarray) -> StoreSpec:
    grid, tokens = grid_of(x), n_tokens(x)
    sites = [SiteSpec(ERROR, tokens, n_columns, grid, "float32")]
    n_pairs = len(list(combinations(range(n_columns), 2)))
    if n_pairs:
        sites.append(SiteSpec(DIFFERENCE, tokens, n_pairs, grid, "float32"))
    return StoreSpec.plan(tuple(sites), len(x), tuple(range(len(log_snr))), tuple(log_snr.tolist()), ("unguided",))


def _samples(x: torch.Tensor, columns: Sequence[Column], seed: int) -> pa.Table:
    texts = []
    for i in range(len(x)):
        given = {c.name: c.of(range(i, i + 1))[0] for c in columns}
        texts.append((str(given.get(CAPTION) or ""), canonical(given).decode()))
    clean = x.reshape(len(x), -1).to("cpu", torch.float64).numpy()
    return pa.table(
        {
            "sample": pa.array(range(len(x)), pa.int64()),
            "prompt": pa.array([t[0] for t in texts], pa.string()),
            "seed": pa.array([seed] * len(x), pa.int64()),
            "conditions": pa.array([t[1] for t in texts], pa.string()),
            "x": pa.array(list(clean), pa.list_(pa.float64())),
        }
    )


def _sha(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(canonical(value))
    return digest.hexdigest()
