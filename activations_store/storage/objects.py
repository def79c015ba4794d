"""Objects of S3-compatible storage, with those methods of a path that the package uses.

`s3://bucket/key` names an object, and a folder is what lies behind a prefix; there is nothing to make or to rename.
A put is atomic: an object is there whole or not at all. Puts are conditional (`If-None-Match: *`, part of S3 since
2024), so that nothing is ever overwritten and the first of two writers wins.

Region, credentials and endpoint are those of the environment: AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_ENDPOINT_URL. Needs obstore (`pip install denoscope[s3]`), which is loaded with the first
`s3://` path.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activations_store.errors import (
    InvalidMetadata,
    MissingLibrary,
    ShardConflict,
    StorageUnavailable,
    UnsafePath,
    explain,
)

if TYPE_CHECKING:
    from obstore.store import S3Store

SCHEME = "s3://"
_INSTALL = "pip install 'denoscope[s3]'"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY = re.compile(r"[A-Za-z0-9_.+@=-]+(/[A-Za-z0-9_.+@=-]+)*")
_PIECE = 8 * 2**20
RETRIES = {"max_retries": 5}
"""How often a request is repeated that was not answered, with growing pauses."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or the prefix of several.

    Attributes:
        bucket: its bucket.
        key: its key, without a slash at either end.
    """

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "ObjectPath":
        """The path of `s3://bucket/key`; raises `UnsafePath` for anything else."""
        bucket, _, key = text.removeprefix(SCHEME).rstrip("/").partition("/")
        parts = key.split("/")
        if not _BUCKET.fullmatch(bucket) or not _KEY.fullmatch(key) or "." in parts or ".." in parts:
            raise UnsafePath(
                explain(
                    "This names no place in an object store",
                    found=repr(text)[:200],
                    expected="s3://BUCKET/KEY with letters, digits and _ . + @ = - in the key's parts",
                )
            )
        return cls(bucket, key)

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(self.bucket, f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """What the object lies in."""
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def resolve(self) -> "ObjectPath":
        """The path itself: there are no links."""
        return self

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as something lies in it."""

    def is_symlink(self) -> bool:
        """False: there are no links."""
        return False

    def exists(self) -> bool:
        """Whether there is an object of this very key."""
        try:
            with _explained(self):
                _obstore().head(self.client, self.key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether anything lies behind the prefix."""
        return bool(self.entries())

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object; one that is not there is no error."""
        with _explained(self):
            _obstore().delete(self.client, self.key)

    def entries(self) -> list[tuple[str, int | None]]:
        """(name, size) of what lies directly behind the prefix, by name; a size of None is a folder's."""
        prefix = f"{self.key}/"
        with _explained(self):
            found = _obstore().list_with_delimiter(self.client, prefix)
        names: list[tuple[str, int | None]] = [(p.rstrip("/"), None) for p in found["common_prefixes"]]
        names += [(o["path"], int(o["size"])) for o in found["objects"]]
        return sorted((name.removeprefix(prefix), size) for name, size in names)

    def size(self) -> int:
        """Bytes of the object; `FileNotFoundError` if there is none."""
        with _explained(self):
            return int(_obstore().head(self.client, self.key)["size"])

    def read(self, limit: int) -> bytes:
        """The object, which must not be larger than `limit`: it is refused before it is fetched."""
        with _explained(self):
            found = _obstore().get(self.client, self.key)
            if found.meta["size"] > limit:
                raise InvalidMetadata(
                    explain(f"{self} is too large", found=f"{found.meta['size']} bytes", expected=f"at most {limit}")
                )
            return bytes(found.bytes())

    def read_into(self, out: np.ndarray, offset: int) -> int:
        """Fill `out` (uint8) from `offset`; how many bytes there were."""
        with _explained(self):
            data = _obstore().get_range(self.client, self.key, start=offset, length=len(out))
        found = np.frombuffer(data, np.uint8)[: len(out)]
        out[: len(found)] = found
        return len(found)

    def pieces(self) -> Iterator[bytes]:
        """The object in pieces of some MB."""
        with _explained(self):
            yield from (bytes(piece) for piece in _obstore().get(self.client, self.key).stream(min_chunk_size=_PIECE))

    def put(self, data: bytes | memoryview, *, replace: bool = False) -> None:
        """Make the object.

        Args:
            data: all of it.
            replace: overwrite one that is there.

        Raises:
            ShardConflict: there is another one, unless `replace`. One with the same bytes is as good as a new one.
        """
        mode = "overwrite" if replace else "create"
        try:
            with _explained(self):
                _obstore().put(self.client, self.key, data, mode=mode, use_multipart=False)
        except FileExistsError as error:
            digest = hashlib.sha256()
            for piece in self.pieces():
                digest.update(piece)
            if digest.digest() != hashlib.sha256(data).digest():
                raise ShardConflict(
                    explain(
                        f"{self} is there already, with other bytes",
                        expected="an object that is not there, or the same one: nothing is overwritten",
                        next_step="find out who wrote it; if it is damaged, StoreWriter.discard its shard first",
                    )
                ) from error

    @property
    def client(self) -> "S3Store":
        """The bucket, as obstore sees it."""
        return _client(self.bucket, os.environ.get("AWS_ENDPOINT_URL"))


Place = Path | ObjectPath
"""Where a store, or a part of one, lies."""


def place(path: str | Place) -> Place:
    """A path of this machine, or of an object store if it begins with `s3://`."""
    if isinstance(path, str) and path.startswith(SCHEME):
        return ObjectPath.parse(path)
    return path if isinstance(path, ObjectPath) else Path(path)


def _obstore() -> Any:
    """The library, loaded when the first object is touched."""
    try:
        import obstore
    except ImportError as error:
        raise MissingLibrary(explain("Places that begin with s3:// need obstore", next_step=_INSTALL)) from error
    return obstore


@lru_cache(maxsize=16)
def _client(bucket: str, endpoint: str | None) -> "S3Store":
    from obstore.store import S3Store

    options: dict[str, Any] = {"retry_config": RETRIES}
    if endpoint is not None:
        # An endpoint without TLS is taken only because it was asked for by name.
        options |= {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
    return S3Store(bucket, **options)


@contextmanager
def _explained(path: ObjectPath) -> Iterator[None]:
    """What goes wrong over the network, as errors of this package."""
    _obstore()
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from error
    except AlreadyExistsError as error:
        raise FileExistsError(errno.EEXIST, "an object is there already", str(path)) from error
    except BaseError as error:
        raise StorageUnavailable(
            explain(
                f"{path} cannot be reached",
                found=str(error).splitlines()[0][:200],
                next_step="check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the credentials",
            )
        ) from error
