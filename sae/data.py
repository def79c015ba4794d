"""How this package reads a store: which samples exist, whether a dictionary fits, and a stream of whole maps.

Training draws shuffled rows with `activations_store.RowLoader`; everything that measures reads whole maps
here, in sample order, so that sums over a sample, a step or a cell are exact and do not depend on a shuffle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activations_store import ActivationStore
from activations_store.storage.jsonio import content_hash
from sae.contract import SparseDictionary
from sae.errors import EmptySelection, SAEModelMismatch, SAESiteMismatch

BLOCK_BYTES = 32 * 2**20  # of float32 rows held at a time
Blocks = tuple[tuple[str, int | None, int], ...]
"""As `SAEConfig.blocks`: (site, step or None for the step of the row, width) of each part of a row."""


@dataclass(frozen=True)
class Selection:
    """Which part of a store to read; every field is resolved to explicit values."""

    site: str
    samples: np.ndarray  # (S,) int64, ascending
    steps: np.ndarray  # (T,) int64
    branches: tuple[str, ...]
    tokens: int
    channels: int
    log_snr: tuple[float, ...]  # of each step
    blocks: Blocks | None = None  # what each row is put together from, for a crosscoder

    @property
    def n_rows(self) -> int:
        """Rows of the selection."""
        return len(self.samples) * len(self.steps) * len(self.branches) * self.tokens


@dataclass(frozen=True)
class Block:
    """Maps of some samples at one branch."""

    x: np.ndarray  # (S, T, tokens, channels) float32
    samples: np.ndarray  # (S,) positions in Selection.samples
    branch: int  # position in Selection.branches


def select(
    store: ActivationStore,
    site: str,
    *,
    samples: Sequence[int] | np.ndarray | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    branches: Sequence[str] | None = None,
    max_rows: int | None = None,
    blocks: Blocks | None = None,
) -> Selection:
    """Resolves a selection; None means everything that is committed.

    Args:
        site: the site whose rows are read; of a crosscoder over sites, its first.
        samples, steps: whole numbers, in any order; a mask is refused.
        branches: names.
        max_rows: keep only as many samples, spread evenly over the selection, as fit in this many rows, at least one.
        blocks: of a crosscoder; one over steps has a single map a sample, named by its first step.

    Raises:
        EmptySelection: no sample, step or branch is left, one does not exist, or a map was never recorded.
    """
    spec = store.site(site).spec
    present = store.committed_samples()
    chosen = present if samples is None else np.unique(_numbers(samples, "samples", store))
    missing = np.setdiff1d(chosen, present)
    if len(chosen) == 0 or len(missing):
        what = f"samples {missing[:5].tolist()} are not" if len(missing) else "no sample is"
        raise EmptySelection(
            f"In {store.place}, {what} committed; {len(present)} samples are. Collect them, or choose others."
        )
    n_steps = store.spec.n_steps
    step_numbers = np.arange(n_steps) if steps is None else _numbers(steps, "steps", store)
    if len(step_numbers) == 0 or step_numbers.min() < 0 or step_numbers.max() >= n_steps:
        raise EmptySelection(f"Steps {step_numbers.tolist()} of {store.place}; the store has steps 0 to {n_steps - 1}.")
    names = tuple(store.spec.branches) if branches is None else tuple(branches)
    unknown = [name for name in names if name not in store.spec.branches]
    if not names or unknown:
        raise EmptySelection(f"Branches {list(names)} of {store.place}; the store has {list(store.spec.branches)}.")
    if blocks is not None and blocks[0][1] is not None:
        step_numbers = np.array([blocks[0][1]])
    if max_rows is not None:
        n = max(1, max_rows // (len(step_numbers) * len(names) * spec.tokens))
        if n < len(chosen):
            chosen = chosen[np.linspace(0, len(chosen) - 1, n).round().astype(np.int64)]
    for part, step, _ in blocks or ((site, None, spec.channels),):
        at = step_numbers if step is None else [step]
        # Only a ragged store has records with missing maps, so only there must they be read.
        if store.holding(part).spec.ragged and not store.site(part).present(chosen, at, list(names)).all():
            raise EmptySelection(
                f"{store.place} lacks maps of {part} that were chosen, and sums over whole maps need all of them. "
                "Choose samples and steps by store.site(...).present()."
            )
    levels = tuple(float(store.spec.log_snr[step]) for step in step_numbers)
    channels = spec.channels if blocks is None else sum(width for _, _, width in blocks)
    return Selection(site, chosen, step_numbers, names, spec.tokens, channels, levels, blocks)


def _numbers(given: Sequence[int] | np.ndarray, what: str, store: ActivationStore) -> np.ndarray:
    """Whole numbers as int64; a boolean mask, which would count as zeros and ones, is refused."""
    found = np.asarray(given)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise EmptySelection(
            f"The {what} of {store.place} are chosen by {found.dtype} values of shape {found.shape}; expected a list "
            "of whole numbers. Of a mask, give np.flatnonzero(mask)."
        )
    return found.astype(np.int64)


def stream(store: ActivationStore, selection: Selection, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Reads a selection once, in sample order: at most `block_bytes` of float32 rows and one branch at a time."""
    blocks = selection.blocks or ((selection.site, None, selection.channels),)
    per_sample = len(selection.steps) * selection.tokens * selection.channels * 4
    n = max(1, block_bytes // per_sample)
    for start in range(0, len(selection.samples), n):
        at = np.arange(start, min(start + n, len(selection.samples)))
        for branch, name in enumerate(selection.branches):
            parts = [
                store.site(site).read(
                    sample=selection.samples[at], step=selection.steps if step is None else [step], branch=name
                )[:, :, 0]
                for site, step, _ in blocks
            ]
            x = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            yield Block(np.ascontiguousarray(x, dtype=np.float32), at, branch)


def store_identity(store: ActivationStore) -> dict[str, Any]:
    """JSON that says which data this is: the store's own hashes, its model, and which samples were committed."""
    return {
        "hashes": store.hashes,
        "samples_hash": content_hash(store.committed_samples().tolist()),
        "fingerprint": store.fingerprint,
    }


def check_fits(
    sae: SparseDictionary, store: ActivationStore, *, site: str | None = None, any_model: bool = False
) -> str:
    """Checks that a dictionary belongs to a site of a store; returns the site's name.

    Raises:
        SAESiteMismatch: another site, or another width.
        SAEModelMismatch: both sides know their model's weights and they differ (`any_model=True` allows it).
    """
    trained_at = sae.config.site
    name = site or trained_at
    if trained_at and name != trained_at:
        raise SAESiteMismatch(f"The SAE was trained at {trained_at}; it was asked to read {name} of {store.place}.")
    for part, _, width in sae.config.blocks or ((name, None, sae.config.d_in),):
        channels = store.site(part).spec.channels
        if channels != width:
            raise SAESiteMismatch(f"The SAE reads rows of width {width}; {part} of {store.place} has width {channels}.")
    ours = sae.metadata.get("store", {}).get("fingerprint", {})
    mine, theirs = ours.get("weights_hash"), store.fingerprint.get("weights_hash")
    if mine and theirs and mine != theirs and not any_model:
        raise SAEModelMismatch(
            f"The SAE was trained on activations of {ours.get('name', 'a model')} (weights {mine[:12]}); "
            f"{store.place} holds {store.fingerprint.get('name', 'another')} (weights {theirs[:12]}). Pass "
            "any_model=True to compare them anyway."
        )
    return name
