"""Real images in a folder, with what is known about them.

A folder holds images anywhere below it. Beside them may lie ``metadata.csv`` (the convention of Hugging Face's image
folders): its column ``file_name`` names the images to take, relative to the folder; ``prompt`` (or ``text``) is what
the model is told, ``mask`` a mask file, relative too, and every other column is a label. Without that table every
image is taken, in the order of its name, with an empty prompt, and labelled ``folder`` by its sub-folder if there are
several.

Images are cropped to their centre square and scaled to the model's size; masks likewise, without interpolation, so a
mask's pixel covers the same place as the image's.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from probe.errors import ImageFileError, ImageFolderNotFound

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLE = "metadata.csv"


@dataclass(frozen=True)
class ImageSet:
    """Images to record.

    Attributes:
        folder: where they lie.
        files: image files relative to it, with forward slashes.
        sha256: of each file, hexadecimal.
        prompts: one an image.
        masks: mask files relative to the folder, "" for none.
        labels: for each labelled factor, one value an image.
    """

    folder: Path
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    prompts: tuple[str, ...]
    masks: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_images(folder: str | Path, *, limit: int | None = None) -> ImageSet:
    """List a folder's images; every file is read once, for its hash.

    Args:
        folder: see the module.
        limit: the first so many only.

    Raises:
        ImageFolderNotFound: no such folder, or no image in it.
        ImageFileError: the table is malformed, or names a file that is missing or outside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageFolderNotFound(f"images: there is no folder {str(folder)!r}.")
    table = folder / TABLE
    if table.is_file():
        files, prompts, masks, labels = _from_table(table)
    else:
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        files, prompts, masks = found, [""] * len(found), [""] * len(found)
        parents = [str(PurePosixPath(name).parent) for name in found]
        labels = {"folder": parents} if len(set(parents)) > 1 else {}
    if not files:
        raise ImageFolderNotFound(
            f"images: {str(folder)!r} holds no image ({', '.join(SUFFIXES)}) and no {TABLE} that names one."
        )
    chosen = slice(limit)
    return ImageSet(
        folder,
        tuple(files[chosen]),
        tuple(hashlib.sha256(_inside(folder, name).read_bytes()).hexdigest() for name in files[chosen]),
        tuple(prompts[chosen]),
        tuple(masks[chosen]),
        {factor: tuple(values[chosen]) for factor, values in labels.items()},
    )


def load_image(folder: str | Path, name: str, sha256: str, size: int) -> np.ndarray:
    """An image as the model gets it: uint8 (size, size, 3).

    Raises:
        ImageFileError: it cannot be read, or is not the file that the plan was made with.
    """
    path = _inside(Path(folder), name)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ImageFileError(
            f"images: {name} changed since the plan was made (SHA-256 {found[:12]}, expected {sha256[:12]}). Restore "
            "it, or make a new plan."
        )
    return np.array(_square(path, name, "RGB", size, Image.Resampling.LANCZOS))


def load_mask(folder: str | Path, name: str, size: int) -> np.ndarray:
    """A mask cropped and scaled as its image, nearest pixel: uint8 (size, size)."""
    return np.array(_square(_inside(Path(folder), name), name, "L", size, Image.Resampling.NEAREST))


def png_bytes(pixels: np.ndarray) -> bytes:
    """An image, uint8 (height, width, 3), or a mask, uint8 (height, width), as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _square(path: Path, name: str, mode: str, size: int, resampling: Image.Resampling) -> Image.Image:
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert(mode)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"images: {name} cannot be read as an image: {error}.") from error
    return ImageOps.fit(upright, (size, size), resampling)


def _inside(folder: Path, name: str) -> Path:
    """The file of a name, which must lie in the folder, also after links are followed."""
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise ImageFileError(f"images: {name!r} is not a file in {str(folder)!r}.")
    return path


def _from_table(path: Path) -> tuple[list[str], list[str], list[str], dict[str, list[str]]]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ImageFileError(f"images: {path.name} is not CSV in UTF-8: {error}.") from error
    if "file_name" not in columns:
        raise ImageFileError(f"images: {path.name} has no column 'file_name'; found {', '.join(columns) or 'none'}.")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ImageFileError(
                f"images: {path.name} row {line} does not have the {len(columns)} fields of the header."
            )
    text = next((c for c in ("prompt", "text") if c in columns), None)
    given = {"file_name", text, "mask"}
    factors = [c for c in columns if c not in given]
    labels = {c.removeprefix("label_"): [row[c].strip() for row in rows] for c in factors}
    if len(labels) < len(factors):
        raise ImageFileError(f"images: {path.name} gives a label twice: {', '.join(sorted(factors))}.")
    masks = [row.get("mask", "").strip() for row in rows]
    for name in masks:
        if name:
            _inside(path.parent, name)
    prompts = [row[text].strip() if text else "" for row in rows]
    return [row["file_name"].strip() for row in rows], prompts, masks, labels
