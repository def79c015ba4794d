"""The UnlearnCanvas data set in a folder: ``STYLE/OBJECT/N.jpg``, N from 1.

The full set has 60 styles with 20 images of each object; those of the benchmark's styles are used, as far as they are
there. Real images calibrate the judge (``unlearncanvas_judge``). They can be recorded, too: after

    python -c "from apps.unlearncanvas.data import UnlearnCanvasData as D; D.open('FOLDER').write_table()"

``denoscope collect --images FOLDER`` knows each image's prompt, object and style.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image, ImageOps

from apps.errors import InvalidFile, InvalidOption, OutputExists
from apps.unlearncanvas.protocol import LABELS, OBJECTS, STYLES, caption

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class UnlearnCanvasData:
    """Images with their labels.

    Attributes:
        folder: where they lie.
        files: image files relative to it, in the order of style, object and number.
        labels: object and style of each.
    """

    folder: Path
    files: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """List the images; nothing is decoded.

        Raises:
            InvalidFile: the folder does not exist or has no STYLE/OBJECT/ folder with images.
        """
        folder, files = Path(folder), []
        for style in STYLES:
            for name in OBJECTS:
                found = [p for p in (folder / style / name).glob("*") if p.suffix.lower() in SUFFIXES]
                numbered = sorted(found, key=lambda p: (not p.stem.isdecimal(), p.stem.zfill(9)))
                files += [(p.relative_to(folder).as_posix(), name, style) for p in numbered]
        if not files:
            raise InvalidFile(
                f"data set: {str(folder)!r} has no images in STYLE/OBJECT/, such as {STYLES[0]}/{OBJECTS[0]}/1.jpg; "
                "give the folder of UnlearnCanvas that holds the styles."
            )
        names, objects, styles = zip(*files, strict=True)
        return cls(folder, names, {"object": objects, "style": styles})

    def missing(self) -> list[tuple[str, str]]:
        """(object, style) pairs of the benchmark without an image."""
        found = set(zip(self.labels["object"], self.labels["style"], strict=True))
        return [(o, s) for s in STYLES for o in OBJECTS if (o, s) not in found]

    def sample(self, n: int, *, seed: int = 0) -> Self:
        """n images, every style and every object as equally often as n allows; all if there are no more."""
        tie = np.random.default_rng(seed).random(len(self.files))
        of = [np.array([LABELS[f].index(label) for label in self.labels[f]]) for f in LABELS]
        used = [np.zeros(len(LABELS[f])) for f in LABELS]
        chosen: list[int] = []
        for _ in range(min(n, len(self.files))):
            best = int((sum(u[labels] for u, labels in zip(used, of, strict=True)) + tie).argmin())
            tie[best] = np.inf  # once only
            chosen.append(best)
            for u, labels in zip(used, of, strict=True):
                u[labels[best]] += 1
        chosen.sort()
        labels = {factor: tuple(values[i] for i in chosen) for factor, values in self.labels.items()}
        return type(self)(self.folder, tuple(self.files[i] for i in chosen), labels)

    def images(self, side: int) -> np.ndarray:
        """Decoded, cropped to the centre square: uint8 (N, side, side, 3).

        Raises:
            InvalidFile: one cannot be read.
        """
        found = []
        for name in self.files:
            try:
                with Image.open(self.folder / name) as image:
                    upright = ImageOps.exif_transpose(image).convert("RGB")
            except OSError as error:
                raise InvalidFile(f"data set: {name} cannot be read as an image: {error}.") from error
            found.append(np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR)))
        return np.stack(found)

    def write_table(self) -> Path:
        """Write ``metadata.csv``: file, prompt, object and style of each image.

        Raises:
            OutputExists: there is one.
        """
        path = self.folder / "metadata.csv"
        if path.exists():
            raise OutputExists(f"data set: {str(path)!r} exists already; remove it to write it again.")
        rows: list[dict[str, str]] = [
            {"object": name, "style": style} for name, style in zip(*self._columns(), strict=True)
        ]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "prompt", "object", "style"])
            for name, row in zip(self.files, rows, strict=True):
                writer.writerow([name, caption(row), row["object"], row["style"]])
        return path

    def _columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.labels["object"], self.labels["style"]


def real_images(folder: Path, n: int, side: int, *, seed: int = 0) -> np.ndarray:
    """n real images of the data set, uint8 (n, side, side, 3), to calibrate the judge with.

    Raises:
        InvalidOption: fewer than 2; a quantile needs images.
    """
    if n < 2:
        raise InvalidOption(f"data set: {n} images cannot calibrate a judge; give at least 2.")
    return UnlearnCanvasData.open(folder).sample(n, seed=seed).images(side)
