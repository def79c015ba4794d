"""Stores made from stores: a part of one, or several joined.

Stored words are copied, never decoded, so values keep every bit in every dtype. Only committed samples are taken. The
new store is written like any other, shard by shard with commit records: a copy that was stopped goes on when it is
asked for again. Its plan is what its sources agree on, plus `derived`: the operation and the hashes of the sources.
Its sample table numbers the samples anew; `origin_store` and `origin_sample` say where each came from. Images and
masks that lie beside the sources go along (pictures.py), those of a shard before its commit.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activations_store.errors import (
    FingerprintMismatch,
    InvalidSamples,
    InvalidSelection,
    MissingSamples,
    SpecMismatch,
    StoreExists,
    explain,
)
from activations_store.format.pictures import copy_pictures, renumbered
from activations_store.format.spec import StoreSpec
from activations_store.storage import jsonio
from activations_store.store import ActivationStore
from activations_store.views.selection import BranchSelection, Selection, resolve
from activations_store.writing.writer import StoreWriter

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]
"""Called with (samples copied, samples in all)."""


def merge(
    stores: Sequence[ActivationStore], out: str | Path, *, progress: Progress | None = None, fsync: bool = False
) -> ActivationStore:
    """Join stores of one model and one schedule: their committed samples, one after the other.

    Args:
        stores: two or more with equal sites (groups count as sites), steps, branches and fingerprint.
        out: folder of the new store, or of one that the same call began.
        progress: told after every shard.
        fsync: see `StoreWriter.create`.

    Returns:
        The new store, complete.

    Raises:
        SpecMismatch, FingerprintMismatch, InvalidSamples: the stores do not fit together; the message names what
            differs.
        MissingSamples: nothing is committed.
        StoreExists, PlanMismatch, SpecMismatch: `out` holds another store.
    """
    if len(stores) < 2:
        raise InvalidSelection(explain("merge needs several stores", found=len(stores), expected="two or more"))
    first = stores[0]
    for store in stores[1:]:
        _check_alike(first, store)
    sources = [(store, committed_samples(store)) for store in stores]
    return _copy(sources, first.sites, None, None, out, "merge", progress, fsync)


def subset(
    store: ActivationStore,
    out: str | Path,
    *,
    samples: Selection = None,
    sites: Sequence[str] | None = None,
    steps: Selection = None,
    branches: BranchSelection = None,
    progress: Progress | None = None,
    fsync: bool = False,
) -> ActivationStore:
    """A part of a store as a store of its own.

    Args:
        store: the source; sites of groups become plain sites.
        out: folder of the new store, or of one that the same call began.
        samples: numbers or mask; None for all that are committed.
        sites: names; None for all.
        steps: numbers; None for all.
        branches: names or numbers; None for all.
        progress, fsync: see `merge`.

    Raises:
        UnknownSite, InvalidSelection: something the store does not have.
        MissingSamples: a sample that is not committed at every site.
        StoreExists, PlanMismatch, SpecMismatch: `out` holds another store.
    """
    present = committed_samples(store)
    chosen = present if samples is None else np.unique(resolve(samples, store.spec.n_samples, "sample"))
    missing = np.setdiff1d(chosen, present)
    if len(missing):
        raise MissingSamples(
            explain(f"{len(missing)} chosen samples of {store.place} are not committed", found=f"sample {missing[0]}")
        )
    names = store.sites if sites is None else tuple(dict.fromkeys(sites))
    if not names:
        raise InvalidSelection(explain("No site is chosen", expected="some of " + ", ".join(store.sites)))
    return _copy([(store, chosen)], names, steps, branches, out, "subset", progress, fsync)


def _check_alike(first: ActivationStore, other: ActivationStore) -> None:
    ours = {name: first.site(name).spec for name in first.sites}
    theirs = {name: other.site(name).spec for name in other.sites}
    lines = [f"site {name} is only in one" for name in sorted(set(ours) ^ set(theirs))]
    lines += [f"site {name} differs" for name in ours if name in theirs and ours[name] != theirs[name]]
    for key in ("timesteps", "log_snr", "branches"):
        if getattr(first.spec, key) != getattr(other.spec, key):
            lines.append(f"{key} differ")
    if lines:
        raise SpecMismatch(explain(f"{first.place} and {other.place} do not fit together", found="; ".join(lines[:6])))
    lines = jsonio.differences(first.fingerprint, other.fingerprint)
    if lines:
        raise FingerprintMismatch(
            explain(f"{first.place} and {other.place} come from different models", found="; ".join(lines))
        )
    if _columns(first) != _columns(other):
        raise InvalidSamples(
            explain("The sample tables have different columns", found=_columns(other), expected=_columns(first))
        )


def _columns(store: ActivationStore) -> list[str]:
    return sorted(f"{f.name}: {f.type}" for f in store.samples.schema if not f.name.startswith("origin_"))


def committed_samples(store: ActivationStore) -> np.ndarray:
    """(n,) int64 numbers of the samples that are committed at every site; raises `MissingSamples` without any."""
    kept = store.committed_samples()
    for group in store.groups.values():
        kept = np.intersect1d(kept, group.committed_samples())
    if not len(kept):
        raise MissingSamples(explain(f"No sample of {store.place} is committed", next_step="collect first"))
    return kept


def _copy(
    sources: list[tuple[ActivationStore, np.ndarray]],
    sites: tuple[str, ...],
    steps: Selection,
    branches: BranchSelection,
    out: str | Path,
    operation: str,
    progress: Progress | None,
    fsync: bool,
) -> ActivationStore:
    first = sources[0][0]
    views = [{name: store.site(name).sel(step=steps, branch=branches) for name in sites} for store, _ in sources]
    view = views[0][sites[0]]
    holders = [store.holding(name).spec for store, _ in sources for name in sites]
    spec = StoreSpec(
        tuple(views[0][name].spec for name in sites),
        n_samples=sum(len(samples) for _, samples in sources),
        timesteps=tuple(first.spec.timesteps[s] for s in view.steps),
        log_snr=tuple(first.spec.log_snr[s] for s in view.steps),
        branches=view.branches,
        samples_per_shard=first.spec.samples_per_shard,
        compression=first.spec.compression,
        ragged=any(holder.ragged for holder in holders),
    )
    origin = np.concatenate([np.full(len(samples), i) for i, (_, samples) in enumerate(sources)])
    number = np.concatenate([samples for _, samples in sources])
    plan = _derived_plan([store for store, _ in sources], operation)
    options: dict[str, Any] = {
        "fingerprint": first.fingerprint,
        "plan": plan,
        "allow_nonfinite": True,  # what the sources hold was allowed there; it is counted again
        "fsync": fsync,
    }
    try:
        writer = StoreWriter.create(out, spec, _table(sources, origin, number), **options)
    except StoreExists:
        writer = StoreWriter.resume(out, spec=spec, **options)
    with writer:
        pending = writer.pending()
        done = spec.n_samples - sum(len(spec.shard_samples(shard)) for shard in pending)
        for shard in pending:
            at = np.array(spec.shard_samples(shard))
            arrays, present = {}, {}
            for name in sites:
                parts = [(views[i][name], number[at[origin[at] == i]]) for i in np.unique(origin[at])]
                words = [part.read_stored(sample=samples, missing="nan") for part, samples in parts]
                arrays[name] = np.concatenate(words) if len(words) > 1 else words[0]
                if spec.ragged:
                    present[name] = np.concatenate([part.present(sample=samples) for part, samples in parts])
            for i in np.unique(origin[at]):
                new = at[origin[at] == i]
                pairs = zip(number[new].tolist(), new.tolist(), strict=True)
                copy_pictures(sources[i][0].place, dict(pairs), writer.place, fsync=fsync)
            writer.write_shard(shard, arrays, present)
            done += len(at)
            if progress is not None:
                progress(done, spec.n_samples)
    return ActivationStore.open(out)


def _table(sources: list[tuple[ActivationStore, np.ndarray]], origin: np.ndarray, number: np.ndarray) -> "pa.Table":
    import pyarrow as pa

    names = [n for n in sources[0][0].samples.column_names if n != "sample" and not n.startswith("origin_")]
    table = pa.concat_tables([store.samples.select(names).take(pa.array(samples)) for store, samples in sources])
    if "mask" in names and table.schema.field("mask").type == pa.string():
        masks = renumbered(table.column("mask").to_pylist(), number.tolist())
        table = table.set_column(names.index("mask"), "mask", pa.array(masks, pa.string()))
    table = table.add_column(0, "sample", pa.array(np.arange(len(number))))
    table = table.append_column("origin_store", pa.array(origin.astype(np.int64)))
    return table.append_column("origin_sample", pa.array(number.astype(np.int64)))


def _derived_plan(stores: list[ActivationStore], operation: str) -> dict[str, Any]:
    """What all plans say alike, and where the store comes from."""
    first = stores[0].plan
    common = {key: first[key] for key in first if all(s.plan.get(key) == first[key] for s in stores)}
    return {**common, "derived": {"operation": operation, "sources": [store.hashes for store in stores]}}
