"""activations_store: recorded activations on disk. Plain zarr v3 plus commit records.

Write with `StoreWriter` (whole shards, in any order, killed and resumed at will), read with
`ActivationStore`, train from `RowLoader`. The format is specified in docs/store-format.md. Importing this
package imports numpy and a checksum, nothing heavy.
"""

from activations_store import errors
from activations_store.format.records import CommitRecord, SiteRecord
from activations_store.format.spec import SiteSpec, StoreSpec
from activations_store.loading.loader import RowBatch, RowLoader
from activations_store.loading.quality import ShuffleQuality, effective_batch_size, shuffle_quality
from activations_store.store import ActivationStore
from activations_store.upkeep.copying import copy
from activations_store.upkeep.export_files import export
from activations_store.upkeep.rewrite import merge, subset
from activations_store.upkeep.verify import Problem
from activations_store.views.site_view import SiteView
from activations_store.views.statistics_file import SiteStatistics
from activations_store.writing.background import AsyncShardWriter
from activations_store.writing.leftovers import gc
from activations_store.writing.writer import StoreWriter

__all__ = [
    "ActivationStore",
    "AsyncShardWriter",
    "CommitRecord",
    "Problem",
    "RowBatch",
    "RowLoader",
    "ShuffleQuality",
    "SiteRecord",
    "SiteSpec",
    "SiteStatistics",
    "SiteView",
    "StoreSpec",
    "StoreWriter",
    "copy",
    "effective_batch_size",
    "errors",
    "export",
    "gc",
    "merge",
    "shuffle_quality",
    "subset",
]
