"""What ``denoscope info`` is asked about: images, their captions, and the words that are to be weighed.

    canvas:N     N renders of canvas with their captions; the words are its four factors
    a folder     images with prompts and labels (metadata.csv, see ``probe.capture.image_files``); the words are the
                 labels that stand in every prompt, such as a column "animal"
    one file     with its caption and some of its words, each a role of its own

Captions of canvas are said anew without a word ("a red thing"), as the model was trained; words of other captions are
cut out, and ``absent`` says what stands in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.errors import InvalidOption

if TYPE_CHECKING:
    from probe.information import Column
    from probe.model import PipelineEps

CANVAS = "canvas:"
TEMPLATE = "a {}"


@dataclass(frozen=True, eq=False)
class Subject:
    """Images with what is said about them.

    Attributes:
        images: uint8 (n, side, side, 3), of the model's size.
        captions: one an image.
        words: role -> the word of each image.
        masks: (n, side, side) uint8 of the object, or None.
        absent: role -> what stands in a caption for a word that is left out.
        others: captions for the null, or None for those of the other images.
        canvas: whether captions are those of canvas.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]
    masks: np.ndarray | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] | None = None
    canvas: bool = False

    def only(self, roles: Sequence[str]) -> Subject:
        """With some of the roles.

        Raises:
            InvalidOption: there is no such role, or none at all.
        """
        for role in roles:
            if role not in self.words:
                known = ", ".join(self.words) or "which there are none"
                raise InvalidOption(
                    f"info: no words for {role!r}; expected labels whose value stands once in every prompt, of {known}."
                )
        chosen = list(roles) or list(self.words)
        if not chosen:
            raise InvalidOption("info: there are no words; give --caption and --words, or prompts that hold labels.")
        return replace(self, words={role: self.words[role] for role in chosen})


def canvas_subject(n: int, seed: int) -> Subject:
    """Renders of canvas."""
    from probe.canvas import FACTORS, render_batch

    batch = render_batch(range(n), seed=seed)
    words = {factor: tuple(getattr(scene, factor) for scene in batch.scenes) for factor in FACTORS}
    return Subject(batch.images, tuple(batch.captions), words, batch.masks, canvas=True)


def folder_subject(folder: Path, size: int, n: int | None) -> Subject:
    """Images of a folder, cropped and scaled to the model's size."""
    from probe.capture.image_files import load_image, load_mask, read_images

    found = read_images(folder, limit=n)
    images = np.stack([load_image(folder, f, h, size) for f, h in zip(found.files, found.sha256, strict=True)])
    masks = None
    if all(found.masks):
        masks = np.stack([load_mask(folder, name, size) for name in found.masks])
    words = {
        role: values
        for role, values in found.labels.items()
        if all(p.split().count(v) == 1 for p, v in zip(found.prompts, values, strict=True))
    }
    return Subject(images, found.prompts, words, masks)


def file_subject(path: Path, caption: str, words: Sequence[str], others: Sequence[str], size: int) -> Subject:
    """One image; each word is its own role."""
    from probe.capture.image_files import load_image, read_images

    if not caption or not others:
        raise InvalidOption("info: one image needs --caption, and --others with captions that it could have had.")
    files = read_images(path.parent) if path.parent.is_dir() else None
    if files is None or path.name not in files.files:
        raise InvalidOption(f"info: there is no image {str(path)!r}.")
    for word in words:
        if (times := caption.split().count(word)) != 1:
            raise InvalidOption(
                f"info: {word!r} stands {times} times in --caption {caption!r}; --words stand there once."
            )
    image = load_image(path.parent, path.name, files.sha256[files.files.index(path.name)], size)
    return Subject(image[None], (caption,), {w: (w,) for w in words}, others=tuple(others))


def read_subject(
    source: str,
    size: int,
    *,
    n: int | None = None,
    seed: int = 0,
    caption: str = "",
    words: Sequence[str] = (),
    others: Sequence[str] = (),
    absent: Mapping[str, str] | None = None,
) -> Subject:
    """What ``--images`` means, with the chosen roles.

    Raises:
        InvalidOption: it means nothing, or the words do not fit.
        ImageFileError, ImageFolderNotFound: files that cannot be read.
    """
    one_file = not source.startswith(CANVAS) and not Path(source).is_dir()
    if one_file and not Path(source).exists():
        raise InvalidOption(f"info: there is no file or folder {source!r}; give canvas:N, a folder or an image file.")
    if (caption or others) and not one_file:
        raise InvalidOption(f"info: --caption and --others are for one image file; {source!r} has captions of its own.")
    if source.startswith(CANVAS):
        if n is not None or absent:
            raise InvalidOption(
                "info: --n and --absent are not for canvas; write canvas:N, words are left out by rule."
            )
        count = source.removeprefix(CANVAS)
        if not count.isdecimal() or int(count) < 2:
            raise InvalidOption(f"info: {source!r}; expected canvas:N with N of at least 2, as canvas:16.")
        found = canvas_subject(int(count), seed)
        if (side := found.images.shape[1]) != size:
            raise InvalidOption(f"info: renders of canvas have {side} pixels a side, the model draws {size}.")
    elif Path(source).is_dir():
        found = folder_subject(Path(source), size, n)
    else:
        found = file_subject(Path(source), caption, words, others, size)
    for role in absent or {}:
        if role not in found.words:
            raise InvalidOption(f"info: --absent {role}=...: no such label; expected of {', '.join(found.words)}.")
    return replace(found.only(words), absent=dict(absent or {}))


def word_columns(subject: Subject, pairs: Sequence[tuple[str, str]] = (), *, seed: int = 0) -> list[Column]:
    """Columns of the captions and their words, nulls included."""
    from probe.information import caption_columns

    if subject.canvas:
        from probe.canvas import FACTORS, parse_caption, partial_caption
        from probe.information import Column
        from probe.information.columns import CAPTION, swap, without

        # All four words are needed to say a caption anew, also those that nobody asked about.
        names = [parse_caption(text) for text in subject.captions]
        every = {role: [given[role] for given in names] for role in FACTORS}
        made = caption_columns(subject.captions, every, pairs=list(pairs), say=partial_caption, restate=True, seed=seed)
        unused = {r for r in every if r not in subject.words}
        skip = {f(r) for r in unused for f in (without, swap)} | {f"word:{r}" for r in unused}
        return [c if c.name != CAPTION else Column(CAPTION, subject.captions) for c in made if c.name not in skip]
    return caption_columns(
        subject.captions, subject.words, pairs=list(pairs), absent=subject.absent, others=subject.others, seed=seed
    )


def class_texts(subject: Subject, role: str, template: str | None) -> dict[str, str]:
    """Class -> what the model is told: every value of the role, in a template with {} for it."""
    if subject.canvas:
        from probe.canvas import FACTORS, partial_caption

        values = list(FACTORS[role])
        if template is None:
            return {value: partial_caption({role: value}) for value in values}
    else:
        values = sorted(set(subject.words[role]))
    if len(values) < 2:
        raise InvalidOption(f"info classify: {role!r} has one value, {values[0]!r}; there is nothing to tell apart.")
    text = TEMPLATE if template is None else template
    if text.count("{}") != 1:
        raise InvalidOption(f"info classify: --template {text!r}; expected one {{}} for the word.")
    return {value: text.replace("{}", value) for value in values}


def lens_maps(
    model: PipelineEps, subject: Subject, roles: Sequence[str], levels: Sequence[float], batch: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """role -> (attention, gradient x attention), (images, h, w) each; empty for models without cross-attention."""
    from probe.errors import UnsupportedPipeline
    from probe.lenses import attention_maps, gradient_attention

    words = [[subject.words[role][i] for role in roles] for i in range(len(subject.captions))]
    given = (model.pipe, subject.captions, words)
    try:
        attention = attention_maps(*given, images=subject.images, log_snr=levels, batch_size=batch).heat()
        gradient = gradient_attention(*given, subject.images, levels, batch_size=min(batch, 8)).heat()
    except UnsupportedPipeline:
        return {}
    return {role: (attention[:, k], gradient[:, k]) for k, role in enumerate(roles)}
