"""What the commit records of a store say: which maps are there, and which values are not numbers. No Streamlit.

Nothing but records is read, so it costs a small file a shard whatever the store's size. Of more than ``MOST_RECORDS``
shards as many are read, spread evenly, and the counts are of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from activations_store import ActivationStore

MOST_RECORDS = 500


@dataclass(frozen=True, eq=False)
class StoreRecords:
    """A store by its records.

    Attributes:
        sites: names; those of groups last.
        branches: of guidance.
        timesteps, log_snr: of the steps.
        recorded: (n_sites, n_branches, n_steps) share of the planned maps that are there.
        bad: (n_sites, n_steps) values that are NaN or infinite, in the records that were read.
        overflow: (n_sites, n_steps) of them, those that the stored dtype made infinite.
        n_shards: planned, of all parts.
        n_committed: of them committed.
        n_read: records that were read.
    """

    sites: tuple[str, ...]
    branches: tuple[str, ...]
    timesteps: tuple[float, ...]
    log_snr: tuple[float, ...]
    recorded: np.ndarray
    bad: np.ndarray
    overflow: np.ndarray
    n_shards: int
    n_committed: int
    n_read: int


def read_records(store: ActivationStore, most: int = MOST_RECORDS) -> StoreRecords:
    """Reads the commit records of a store and its groups.

    Raises:
        InvalidRecord: a record is damaged or foreign.
    """
    spec, parts = store.spec, (store, *store.groups.values())
    sites, recorded, bad, overflow, n_read = [], [], [], [], 0
    for part in parts:
        committed = part.committed
        chosen = committed
        if len(committed) > most:
            chosen = [committed[i] for i in np.linspace(0, len(committed) - 1, most).round().astype(int)]
        records = [part.record(shard) for shard in chosen]
        n_read += len(records)
        share = part.n_committed_samples / part.spec.n_samples
        for site in part.spec.sites:
            there, n = np.zeros((len(spec.branches), spec.n_steps)), 0
            wrong, over = np.zeros((2, spec.n_steps), np.int64)
            for record in records:
                own = record.sites[site.name]
                size = len(record.samples)
                there += size if own.present is None else own.present.sum(0).T
                n += size
                wrong += np.array(own.nan) + np.array(own.inf)
                over += np.array(own.overflow)
            sites.append(site.name)
            recorded.append(share * there / max(n, 1))
            bad.append(wrong)
            overflow.append(over)
    return StoreRecords(
        tuple(sites),
        spec.branches,
        tuple(map(float, spec.timesteps)),
        spec.log_snr,
        np.array(recorded),
        np.array(bad),
        np.array(overflow),
        sum(part.spec.n_shards for part in parts),
        sum(len(part.committed) for part in parts),
        n_read,
    )
