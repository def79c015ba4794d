"""The sample table: one row a generation, kept as Parquet beside the arrays.

Columns: `sample` (int64, 0 .. n-1 in order), `prompt` (string), `seed` (int64), then any number of
`label_<factor>` (string) and further columns of the collector's own (for example a mask's file name).
"""

import re
from typing import TYPE_CHECKING

from activations_store.errors import InvalidMetadata, InvalidSamples, explain
from activations_store.storage.objects import Place
from activations_store.storage.reading import open_binary, sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = {"sample": "int64", "prompt": "string", "seed": "int64"}
MAX_TABLE_BYTES = 8 * 2**30
_LABEL = re.compile(r"label_[A-Za-z0-9_]{1,64}")


def check_samples(table: "pa.Table", n_samples: int) -> None:
    """Raise `InvalidSamples` unless the table fits the format and has `n_samples` rows."""
    import numpy as np

    names = table.column_names
    if len(set(names)) != len(names):
        raise InvalidSamples(explain("The sample table repeats a column", found=names))
    for name, kind in REQUIRED.items():
        found = str(table.schema.field(name).type) if name in names else "no such column"
        if found != kind:
            raise InvalidSamples(explain(f"Column {name!r} of the sample table", found=found, expected=kind))
        if table.column(name).null_count:
            raise InvalidSamples(explain(f"Column {name!r} of the sample table has empty values"))
    for name in (n for n in names if n.startswith("label_")):
        kind = str(table.schema.field(name).type)
        if not _LABEL.fullmatch(name) or kind != "string":
            raise InvalidSamples(
                explain(
                    "A label column cannot be used",
                    found=f"{name[:80]!r} of type {kind}",
                    expected="label_<factor> of type string, factor of letters, digits and _",
                )
            )
    if table.num_rows != n_samples:
        raise InvalidSamples(
            explain("The sample table has another length than the spec", found=table.num_rows, expected=n_samples)
        )
    if not np.array_equal(table.column("sample").to_numpy(), np.arange(n_samples)):
        raise InvalidSamples(explain("Column 'sample' does not number the rows", expected="0, 1, ... in order"))


def canonical_samples(table: "pa.Table", n_samples: int) -> "pa.Table":
    """The table as it is stored: checked, every text column of type string, no pandas metadata."""
    import pyarrow as pa

    if not isinstance(table, pa.Table):
        raise InvalidSamples(explain("The sample table", found=type(table).__name__, expected="pyarrow.Table"))
    text = (pa.large_string(), pa.string_view())
    fields = [pa.field(f.name, pa.string() if f.type in text else f.type) for f in table.schema]
    try:
        table = table.cast(pa.schema(fields))
    except (pa.ArrowException, ValueError) as error:
        raise InvalidSamples(explain("The sample table cannot be stored", found=str(error)[:200])) from error
    check_samples(table, n_samples)
    return table


def table_bytes(table: "pa.Table") -> bytes:
    """The table as a Parquet file. The bytes depend on the table and pyarrow's version only."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_samples(path: Place, sha256: str, n_samples: int) -> "pa.Table":
    """Read and check the table.

    Raises `InvalidMetadata` when it is not the one the store was created with.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = sha256_of(path)[1]
        if found != sha256:
            raise InvalidMetadata(
                explain(f"The sample table {path} was changed", found=f"SHA-256 {found}", expected=sha256)
            )
        with open_binary(path) as file:
            parquet = pq.ParquetFile(file)
            meta = parquet.metadata
            inflated = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            if meta.num_rows != n_samples or inflated > MAX_TABLE_BYTES:
                raise InvalidMetadata(
                    explain(
                        f"The sample table {path} does not fit the store",
                        found=f"{meta.num_rows} rows, {inflated} bytes",
                        expected=f"{n_samples} rows, at most {MAX_TABLE_BYTES} bytes",
                    )
                )
            table = parquet.read()
        check_samples(table, n_samples)
    except (pa.ArrowException, InvalidSamples, FileNotFoundError) as error:
        raise InvalidMetadata(explain(f"The sample table {path} cannot be read", found=str(error)[:200])) from error
    return table
