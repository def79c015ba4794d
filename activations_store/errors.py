"""Every error the store raises. Each is a `StoreError` and also the builtin a caller would expect.

A message says what failed, where, what was found, what was expected and what to do next; `explain` puts the
parts together so that all of them read the same way.
"""


def explain(what: str, *, found: object = None, expected: object = None, next_step: str | None = None) -> str:
    """Compose one error message from its parts; parts that are None are left out."""
    parts = [what.rstrip(".") + "."]
    if found is not None:
        parts.append(f"Found: {found}.")
    if expected is not None:
        parts.append(f"Expected: {expected}.")
    if next_step is not None:
        parts.append(f"Next: {next_step.rstrip('.')}.")
    return " ".join(parts)


class StoreError(Exception):
    """Base class of all errors of this package."""


class InvalidSpec(StoreError, ValueError):
    """A `SiteSpec` or `StoreSpec` that cannot be stored: bad name, shape, dtype or schedule."""


class InvalidSamples(StoreError, ValueError):
    """A sample table that does not fit the spec: missing column, wrong type, wrong number of rows."""


class NotAStore(StoreError, FileNotFoundError):
    """The path holds no store (no `store.json`)."""


class StoreExists(StoreError, FileExistsError):
    """`StoreWriter.create` found a store at the path."""


class NewerFormat(StoreError, RuntimeError):
    """The store was written by a newer version of the format than this code reads."""


class InvalidMetadata(StoreError, ValueError):
    """`store.json`, a `zarr.json` or the sample table is damaged, foreign or over a limit."""


class InvalidRecord(StoreError, ValueError):
    """A commit record is damaged, or belongs to another shard or another store."""


class UnsafePath(StoreError, PermissionError):
    """A part of the store is a symbolic link, a FIFO or anything else that is not a plain file or folder."""


class UnknownSite(StoreError, KeyError):
    """No site of that name in the store."""

    def __str__(self) -> str:  # KeyError would show the message's repr, with its quotes and escapes
        return str(self.args[0])


class UnknownLabel(StoreError, KeyError):
    """The sample table has no column `label_<factor>`."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingSamples(StoreError, LookupError):
    """Samples were asked for whose shard has no commit record."""


class MissingEntries(StoreError, LookupError):
    """Maps were asked for that were never recorded, in a ragged store: reading them as numbers would be a lie."""


class InvalidSelection(StoreError, IndexError):
    """A sample, step, branch or token that the site does not have, or a selection that is empty."""


class CorruptShard(StoreError, OSError):
    """A shard file is missing, has the wrong size, or fails a checksum."""


class ShardMismatch(StoreError, ValueError):
    """The arrays given for a shard have the wrong sites, shape or dtype."""


class ShardConflict(StoreError, RuntimeError):
    """A shard is committed already with other content.

    The run is not reproducible, or two runs share a path.
    """


class NonFiniteActivations(StoreError, ArithmeticError):
    """Activations hold NaN or infinity, or overflow the stored dtype."""


class PlanMismatch(StoreError, ValueError):
    """The plan of a resumed run differs from the plan the store was created with."""


class FingerprintMismatch(StoreError, ValueError):
    """The model of a resumed run differs from the model the store was created with."""


class SpecMismatch(StoreError, ValueError):
    """The spec of a resumed run differs from the spec the store was created with."""


class DiskFull(StoreError, OSError):
    """No room for a shard. Committed shards are intact; free space and resume."""


class InvalidStatistics(StoreError, ValueError):
    """A file of statistics is damaged, or is not about the shards that are committed now."""


class StorageUnavailable(StoreError, ConnectionError):
    """An object store did not answer, or refused: no such bucket, no right to it, no network."""


class NotInObjectStore(StoreError, NotImplementedError):
    """Something that works on local stores only."""


class MissingLibrary(StoreError, ImportError):
    """Something needs an optional library that is not installed."""


class WriterClosed(StoreError, RuntimeError):
    """A writer or background writer was used after it was closed."""
