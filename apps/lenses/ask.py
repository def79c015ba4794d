"""The lenses of the command line: ask ``probe.lenses``, show a sheet, keep the numbers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.commands._options import load_model, new_file
from apps.errors import InvalidOption
from apps.images import labelled_grid
from apps.lenses.sheets import (
    SIDE,
    dotted,
    drawn_grid,
    given_images,
    part_sheet,
    save,
    segment_sheet,
    word_sheet,
    wrapped,
)
from apps.progress import bar

if TYPE_CHECKING:
    from probe.lenses.attention_maps import AttentionMaps
    from probe.lenses.features import Features
    from probe.model.pipeline import Pipeline


def attention(options: argparse.Namespace) -> None:
    """Maps of words."""
    from probe.lenses import attention_maps, gradient_attention

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    sites = options.sites or None
    if options.images:
        images, captions = given_images(options.images, pipe, options.caption, options.seed)
        words = _words_in(captions, options.words)
        with bar("attention") as progress:
            if options.gradient:
                found = gradient_attention(
                    pipe, captions, words, images, options.log_snr, sites=sites, progress=progress
                )
            else:
                found = attention_maps(
                    pipe, captions, words, images=images, log_snr=options.log_snr, sites=sites,
                    batch_size=options.batch_size, progress=progress,
                )  # fmt: skip
    else:
        if options.gradient or not options.prompt:
            raise InvalidOption("lens attention: give --prompt, or --images; --gradient works on images only.")
        captions, seeds = drawn_grid(options)
        words = _words_in(captions, options.words)
        with bar("attention") as progress:
            found = attention_maps(
                pipe, captions, words, seeds=seeds, sites=sites, steps=options.steps, guidance=options.guidance,
                batch_size=options.batch_size, progress=progress,
            )  # fmt: skip
    heat = found.heat()
    by = {name: found.heat(side=heat.shape[-2], **part) for name, part in _parts(found, options.by).items()}
    record = {
        "prompts": captions,
        "words": found.words,
        "log_snr": found.log_snr,
        "maps": heat,
        "by": by,
        "mass": {site: mass.mean(1) for site, mass in found.mass().items()},
        "mass_axes": ["step", "word", "head"],
    }
    if by:
        sheet = part_sheet(found.images, np.stack(list(by.values())), found.words, captions, list(by))
    else:
        sheet = word_sheet(found.images, heat, found.words, captions)
    save(out, sheet, record)


def features(options: argparse.Namespace) -> None:
    """Points of the first image in the others."""
    from probe.lenses import correspond

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    images, captions = given_images(options.images, pipe, options.caption, options.seed)
    if len(images) < 2:
        raise InvalidOption("lens features: give two or more --images; points of the first are found in the others.")
    points = np.asarray(options.point or [(0.35, 0.35), (0.65, 0.35), (0.5, 0.5), (0.35, 0.65), (0.65, 0.65)])
    found = _features_of(pipe, images, options)
    ((site, maps),) = found.maps.items()
    grid = (images.shape[1] // 2, images.shape[2] // 2)
    matches = [correspond(maps[0, 0], target, points, grid=grid) for target in maps[0, 1:]]
    shown = [dotted(images[0], points), *(dotted(i, m.points) for i, m in zip(images[1:], matches, strict=True))]
    record = {
        "site": site,
        "log_snr": found.log_snr,
        "captions": captions,
        "points": points,
        "matches": [{"points": m.points, "similarity": m.similarity} for m in matches],
    }
    save(out, labelled_grid([shown], column_labels=["points", *["matches"] * len(matches)], side=256), record)


def segment(options: argparse.Namespace) -> None:
    """Segments of images."""
    from probe.lenses import background_segment, normalised_cut

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    images, captions = given_images(options.images, pipe, options.caption, options.seed)
    found = _features_of(pipe, images, options)
    ((site, maps),) = found.maps.items()
    cuts = [
        normalised_cut(m, limit=options.limit, alpha=options.alpha, max_segments=options.max_segments) for m in maps[0]
    ]
    record = {
        "site": site,
        "log_snr": found.log_snr,
        "captions": captions,
        "segments": cuts,
        "background": [background_segment(cut) for cut in cuts],
    }
    save(out, segment_sheet(images, cuts, captions), record)


def text(options: argparse.Namespace) -> None:
    """Images from every layer of the text encoder."""
    from apps.judging import judge_of, read_outs
    from probe.lenses import text_lens

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    prompts, seeds = drawn_grid(options)
    with bar("text lens") as progress:
        lens = text_lens(
            pipe, prompts, seeds, layers=options.layers, encoder=options.encoder, steps=options.steps,
            guidance=options.guidance, batch_size=options.batch_size, progress=progress,
        )  # fmt: skip
    judge = judge_of(pipe)
    captions = [] if judge is None else [read_outs(judge(images)) for images in lens.images]
    labels = [f"layer {layer} of {lens.n_layers}" for layer in lens.layers]
    record: dict[str, Any] = {"layers": lens.layers, "n_layers": lens.n_layers, "prompts": prompts, "seeds": seeds}
    if judge is not None:
        record["judge"] = captions
    save(out, labelled_grid([list(row) for row in lens.images], row_labels=labels, captions=captions), record)


def invert(options: argparse.Namespace) -> None:
    """Images drawn again from their own noise, and edited."""
    from probe.lenses import invert_images

    out, pipe = new_file(options.out, force=options.force), load_model(options)
    images, captions = given_images(options.images, pipe, options.caption, options.seed)
    method = options.method.replace("-", "_")
    found = invert_images(pipe, images, captions, method=method, steps=options.steps or 50, seed=options.seed)
    rows = [[*pair] for pair in zip(images, found.images, strict=True)]
    texts = [
        [f"given:\n{wrapped(caption)}", f"drawn again:\nerror {error:.3f}, of the autoencoder {codec:.3f}"]
        for caption, error, codec in zip(captions, found.pixel_error, found.codec_error, strict=True)
    ]
    if options.edit:
        edited = found.draw(pipe, [options.edit] * len(images), guidance=options.guidance)
        rows = [[*row, image] for row, image in zip(rows, edited, strict=True)]
        texts = [[*row, f"with another prompt:\n{wrapped(options.edit)}"] for row in texts]
    record = {
        "method": options.method,
        "steps": found.steps,
        "captions": captions,
        "state_error": found.state_error,
        "pixel_error": found.pixel_error,
        "codec_error": found.codec_error,
    }
    for name in ("state_error", "pixel_error", "codec_error"):
        print(f"{name.replace('_', ' ')}: {float(np.mean(record[name])):.2g}")
    save(out, labelled_grid(rows, captions=texts, side=SIDE), record)


def _features_of(pipe: Pipeline, images: np.ndarray, options: argparse.Namespace) -> Features:
    from probe.lenses import diffusion_features

    with bar("features") as progress:
        return diffusion_features(
            pipe, images, options.site, [options.log_snr], draws=options.draws, batch_size=options.batch_size,
            progress=progress,
        )  # fmt: skip


def _parts(found: AttentionMaps, by: str | None) -> dict[str, dict[str, Any]]:
    """What each map of a sheet is of, as arguments of ``heat``, by the name of the map."""
    if by == "layer":
        return {_short(site): {"sites": [site]} for site in found.maps}
    if by == "step":
        return {f"log-SNR {level:.1f}": {"steps": [step]} for step, level in enumerate(found.log_snr)}
    if by == "head":
        if len(found.maps) != 1:
            raise InvalidOption(
                "lens attention --by head: heads of different layers have nothing in common; name one of --sites."
            )
        (maps,) = found.maps.values()
        return {f"head {head}": {"heads": [head]} for head in range(maps.shape[3])}
    return {}


def _short(site: str) -> str:
    """The kind of block of a layer and all numbers of its path, as ``up_blocks 0.1.0``."""
    block, *rest = site.partition(":")[0].split(".")[1:]
    return wrapped(f"{block} {'.'.join(name for name in rest if name.isdecimal())}")


def _words_in(captions: list[str], words: list[str]) -> list[list[str]]:
    """The words of each caption; on canvas a word may name a factor, such as object."""
    from apps.judging import only_known
    from probe.canvas import FACTORS

    known = only_known(captions)
    return [[names[word] if names is not None and word in FACTORS else word for word in words] for names in known]
