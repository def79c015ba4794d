"""The run's store: what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from apps.dashboard.readers.stamps import Stamp, stamp
from apps.dashboard.store_records import StoreRecords, read_records
from apps.runs import STORE_MARK, Run


@dataclass(frozen=True)
class Collected:
    """What a store says about itself.

    Attributes:
        model: the model's fingerprint.
        plan: what was to be collected.
        sites: (name, tokens, channels, dtype) of each recorded tensor.
        n_samples: samples planned.
        n_committed: samples that are there.
        n_steps: denoising steps.
        branches: guidance branches.
        n_bytes: size of the arrays when complete.
        factors: labelled factors.
        prompts: the first prompts.
    """

    model: dict[str, Any]
    plan: dict[str, Any]
    sites: list[tuple[str, int, int, str]]
    n_samples: int
    n_committed: int
    n_steps: int
    branches: tuple[str, ...]
    n_bytes: int
    factors: tuple[str, ...]
    prompts: list[str]

    @property
    def complete(self) -> bool:
        """Whether every planned sample is there."""
        return self.n_committed == self.n_samples


def collected(run: Run) -> Collected | None:
    """The run's store, or None if it has none. Raises the store's own errors for a damaged one."""
    if not (run.store / STORE_MARK).is_file():
        return None
    return _collected(str(run.store), _changing(run))


@st.cache_resource(max_entries=8, show_spinner=False)
def _collected(path: str, changing: tuple[Stamp, ...]) -> Collected:
    from activations_store import ActivationStore

    store = ActivationStore.open(path)
    spec = store.spec
    return Collected(
        model=store.fingerprint,
        plan=store.plan,
        sites=[(s.name, s.tokens, s.channels, s.dtype) for s in (store.site(name).spec for name in store.sites)],
        n_samples=spec.n_samples,
        n_committed=store.n_committed_samples,
        n_steps=spec.n_steps,
        branches=spec.branches,
        n_bytes=sum(part.spec.n_bytes for part in (store, *store.groups.values())),
        factors=store.factors,
        prompts=store.samples.slice(0, 12).column("prompt").to_pylist(),
    )


def store_records(run: Run) -> StoreRecords | None:
    """What the commit records of the run's store say; None if there is none."""
    if not (run.store / STORE_MARK).is_file():
        return None
    return _records(str(run.store), _changing(run))


@st.cache_resource(max_entries=4, show_spinner="Reading the store's records")
def _records(path: str, changing: tuple[Stamp, ...]) -> StoreRecords:
    from activations_store import ActivationStore

    return read_records(ActivationStore.open(path))


def _changing(run: Run) -> tuple[Stamp, ...]:
    return stamp(run.store / STORE_MARK), stamp(run.store / "commits"), stamp(run.store / "groups")
