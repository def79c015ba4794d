"""activations_store: recorded activations on disk. Plain zarr v3 plus commit records.

Write with `StoreWriter` (whole shards, in any order, killed and resumed at will), read with
`ActivationStore`, train from `RowLoader`. The format is specified in docs/store-format.md. Importing this
package imports numpy and a checksum, nothing heavy.
"""

from . import errors
from .background import AsyncShardWriter
from .copying import copy
from .export_files import export
from .leftovers import gc
from .loader import RowBatch, RowLoader
from .quality import ShuffleQuality, effective_batch_size, shuffle_quality
from .records import CommitRecord, SiteRecord
from .rewrite import merge, subset
from .site_view import SiteView
from .spec import SiteSpec, StoreSpec
from .statistics import SiteStatistics
from .store import ActivationStore
from .verify import Problem
from .writer import StoreWriter

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
