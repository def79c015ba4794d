"""One recorded tensor, and the limits that a spec must respect before anything is allocated or opened for it."""

import hashlib
import re
from dataclasses import dataclass

from activations_store.errors import InvalidSpec, explain
from activations_store.format.dtypes import DTYPES, StoredDType

MAX_TOKENS = 2**24
MAX_CHANNELS = 2**20

_SITE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+@-]{0,199}")


def check_count(what: str, value: object, limit: int) -> None:
    """Raise `InvalidSpec` unless `value` is an int from 1 to `limit`."""
    # bool is an int in Python, and True channels is a mistake
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise InvalidSpec(explain(f"{what} is out of range", found=repr(value), expected=f"an int from 1 to {limit}"))


@dataclass(frozen=True)
class SiteSpec:
    """One recorded tensor.

    Attributes:
        name: the site, module path and port, e.g. "unet.mid_block:out".
        tokens: spatial cells (row-major) or sequence positions.
        channels: length of a row.
        grid: (height, width) when tokens are spatial, else None; height x width = tokens.
        dtype: "float32", "float16", "bfloat16" or "int8" (with a scale a row).
    """

    name: str
    tokens: int
    channels: int
    grid: tuple[int, int] | None = None
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _SITE_NAME.fullmatch(self.name) or ".." in self.name:
            raise InvalidSpec(
                explain(
                    "A site's name cannot be used",
                    found=repr(self.name)[:120],
                    expected="1 to 200 of A-Z a-z 0-9 _ . : + @ - with no '..' and no sign in front",
                )
            )
        check_count(f"tokens of site {self.name}", self.tokens, MAX_TOKENS)
        check_count(f"channels of site {self.name}", self.channels, MAX_CHANNELS)
        if self.grid is not None:
            grid = tuple(self.grid) if isinstance(self.grid, tuple | list) else ()
            for side in grid:
                check_count(f"grid of site {self.name}", side, MAX_TOKENS)
            if len(grid) != 2 or grid[0] * grid[1] != self.tokens:
                raise InvalidSpec(
                    explain(
                        f"The grid of site {self.name} does not cover its tokens",
                        found=f"grid {self.grid!r}, tokens {self.tokens}",
                        expected="(height, width) with height x width = tokens",
                    )
                )
            object.__setattr__(self, "grid", grid)
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise InvalidSpec(
                explain(
                    f"The dtype of site {self.name} cannot be stored",
                    found=repr(self.dtype)[:60],
                    expected="one of " + ", ".join(DTYPES),
                )
            )

    @property
    def stored_dtype(self) -> StoredDType:
        """The dtype's row in the table of dtypes."""
        return DTYPES[self.dtype]

    @property
    def stored_channels(self) -> int:
        """Items of a stored row: the channels, and for int8 the four bytes of the row's scale."""
        return self.channels + self.stored_dtype.row_extra

    @property
    def map_bytes(self) -> int:
        """Bytes of one map (one sample, step and branch), without padding and checksum."""
        return self.tokens * self.stored_channels * self.stored_dtype.itemsize

    @property
    def dir_name(self) -> str:
        """Folder of the site's array: a readable slug and 8 hex digits of the name's SHA-256.

        The hash keeps names apart that a slug or a case-insensitive file system would merge.
        """
        slug = re.sub(r"[^A-Za-z0-9_.-]", "-", self.name)[:80].rstrip(".")
        return f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
