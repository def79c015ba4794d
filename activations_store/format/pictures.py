"""Pictures beside the activations: `<store>/images/000000.png` and `<store>/masks/000000.png`, one a sample.

They are no part of the format: no record covers them, and a sample may lack one. A store that is made from stores
takes them along under the numbers that its samples have there. So does the column `mask` of its sample table, where
it names a sample's own mask.
"""

from collections.abc import Iterable, Iterator

from activations_store.storage.fileio import write_atomic
from activations_store.storage.objects import ObjectPath, Place
from activations_store.storage.reading import check_folder, exists, read_small

FOLDERS = ("images", "masks")
MAX_PICTURE_BYTES = 256 * 2**20


def picture_name(sample: int) -> str:
    """File name of a sample's picture."""
    return f"{sample:06d}.png"


def save_picture(root: Place, folder: str, sample: int, data: bytes) -> None:
    """Write one picture of a sample, whole or not at all, over one that is there.

    Args:
        root: the store.
        folder: one of `FOLDERS`.
        sample: its number.
        data: the bytes of a PNG.
    """
    write_atomic(root / folder / picture_name(sample), data, replace=True)


def find_pictures(root: Place, samples: Iterable[int]) -> Iterator[tuple[int, Place]]:
    """(sample, file) of the pictures that lie beside a store, by folder and in the order of `samples`.

    Raises:
        UnsafePath: one of the folders is a link.
    """
    numbers = list(samples)
    for folder in (root / name for name in FOLDERS):
        if isinstance(folder, ObjectPath) or exists(folder):
            check_folder(folder)
            yield from ((n, path) for n in numbers if exists(path := folder / picture_name(n)))


def copy_pictures(root: Place, numbers: dict[int, int], out: Place, *, fsync: bool = False) -> None:
    """Copy pictures, each whole or not at all.

    Args:
        root: the store.
        numbers: number of a sample there -> its number in `out`.
        out: folder in which `images` and `masks` are made where there is something to hold.
        fsync: make the copies survive a power cut.

    Raises:
        UnsafePath: a picture is a link or no plain file.
        InvalidMetadata: a picture is larger than `MAX_PICTURE_BYTES`.
    """
    for sample, path in find_pictures(root, numbers):
        target = out / path.parent.name
        target.mkdir(exist_ok=True)
        check_folder(target)
        data = read_small(path, MAX_PICTURE_BYTES)
        write_atomic(target / picture_name(numbers[sample]), data, fsync=fsync, replace=True)


def renumbered(names: list[str], samples: Iterable[int]) -> list[str]:
    """Column `mask` of samples that are numbered anew from 0; `samples` are their old numbers."""
    return [
        picture_name(new) if name == picture_name(old) else name
        for new, (name, old) in enumerate(zip(names, samples, strict=True))
    ]
