"""What is where in the network: the lenses that read or patch activations, on canvas.

Probe grid: held-out accuracy of every site and level beside shuffled labels; the best cell is picked on the samples
that measure it, so its figure is that of the best of many. Text lens: which factors of the caption are drawn from each
layer of the text encoder. Tracing: two prompts that differ in the object; the share of the judge's probability of the
clean object that comes back with one site restored, beside the same patch from another sample. Drift: change from step
to step in encoder and decoder. Inversion: the error of what is drawn again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from apps.measurement import bootstrap_mean, wilson
from apps.progress import bar
from apps.prompts import balanced

if TYPE_CHECKING:
    from apps.bench.lenses import LensWorld, Row

PROBED = ("down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2")
ENCODER, DECODER = PROBED[:3], PROBED[4:]


def probe_rows(world: LensWorld) -> list[Row]:
    """A row a factor for the best cell and its null, then one for every cell."""
    from probe.canvas import FACTORS, render_batch
    from probe.lenses import diffusion_features, probe_grid

    batch = render_batch(range(world.config.labelled), seed=world.config.seed + 1)
    with bar("features") as progress:
        found = diffusion_features(world.pipe, batch.images, PROBED, world.config.log_snr, progress=progress)
    vectors = found.vectors()
    headlines: list[Row] = []
    cells: list[Row] = []
    for number, (factor, values) in enumerate(FACTORS.items()):
        labels = [values[k] for k in batch.labels[:, number]]
        with bar(f"probes of {factor}", "probe") as progress:
            grid = probe_grid(vectors, labels, shuffles=1, seed=world.config.seed, progress=progress)
        site, step = grid.best
        at = grid.sites.index(site), step
        about = {"factor": factor, "n": grid.n_held_out}
        headlines += [
            about
            | {"what": f"probe of {factor}, best site and level", "headline": f"probe_{factor}", "site": site,
               "log_snr": world.config.log_snr[step], "value": grid.accuracy[at], "low": grid.low[at],
               "high": grid.high[at]},
            about
            | {"what": f"probe of {factor}, shuffled labels, mean of all cells", "headline": f"probe_{factor}_shuffled",
               "value": grid.null.mean(), "highest": grid.null.max(), "chance": 1 / len(values)},
        ]  # fmt: skip
        for i, name in enumerate(grid.sites):
            for k, level in enumerate(world.config.log_snr):
                cells.append(
                    about
                    | {"what": f"probe of {factor}", "site": name, "log_snr": level, "value": grid.accuracy[i, k],
                       "low": grid.low[i, k], "high": grid.high[i, k], "null": grid.null[i, k].mean()}
                )  # fmt: skip
    return headlines + cells


def composition_rows(world: LensWorld) -> list[Row]:
    """For each layer and factor the share of images that show what the caption says."""
    from probe.canvas import FACTORS
    from probe.lenses import text_lens

    prompts = balanced(world.config.prompts, seed=world.config.seed)
    seeds = range(world.config.seed, world.config.seed + world.config.prompts)
    with bar("text lens") as progress:
        lens = text_lens(world.pipe, prompts.prompts, list(seeds), progress=progress)
    n = len(seeds)
    verdict = world.judge(lens.images.reshape(-1, *lens.images.shape[2:]))
    rows: list[Row] = []
    for factor, values in FACTORS.items():
        seen = verdict.labels(factor).reshape(len(lens.layers), n) == np.asarray(prompts.labels[factor])
        first = lens.first_layer(seen)
        known = first[np.isfinite(first)]
        for layer, hits in zip(lens.layers, seen, strict=True):
            share = wilson(int(hits.sum()), n)
            rows.append(
                {"what": f"{factor} drawn from layer {layer} of {lens.n_layers}", "headline": f"text_{factor}_{layer}",
                 "factor": factor, "layer": layer, "value": share.value, "low": share.low, "high": share.high, "n": n,
                 "chance": 1 / len(values), "first_layer": float(known.mean()) if len(known) else None}
            )  # fmt: skip
    return rows


def trace_rows(world: LensWorld) -> list[Row]:
    """For each site and window the effect of restoring it, and that of another sample's values."""
    from probe.canvas import FACTORS, caption
    from probe.lenses import trace
    from probe.model import generation_defaults

    rng = np.random.default_rng(world.config.seed)
    objects = FACTORS["object"]
    clean = _captions(world)[: world.config.traced]
    wanted = [names["object"] for names in clean]
    other = [objects[(objects.index(o) + int(rng.integers(1, len(objects)))) % len(objects)] for o in wanted]
    column = [objects.index(o) for o in wanted]

    def probability(images: np.ndarray) -> np.ndarray:
        return world.judge(images).probs["object"][np.arange(len(images)), column].astype(np.float64)

    steps = generation_defaults(world.pipe).steps
    windows = [range(steps), range(steps // 2), range(steps // 2, steps)]
    names = ("all steps", "first half", "second half")
    with bar("tracing", "run") as progress:
        found = trace(
            world.pipe,
            [caption(c) for c in clean],
            [caption(c | {"object": o}) for c, o in zip(clean, other, strict=True)],
            list(range(world.config.seed, world.config.seed + len(clean))),
            PROBED,
            windows=windows,
            measure=probability,
            progress=progress,
        )
    rows: list[Row] = []
    for i, site in enumerate(found.sites):
        for j, window in enumerate(names):
            for kind, values in (("restored", found.effect[i, j]), ("another sample's", found.null[i, j])):
                mean = bootstrap_mean(values[np.isfinite(values)])
                rows.append(
                    {"what": f"{site}, {window}, {kind}", "site": site, "window": window, "kind": kind,
                     "value": mean.value, "low": mean.low, "high": mean.high, "n": int(np.isfinite(values).sum())}
                )  # fmt: skip
    best = max((row for row in rows if row["kind"] == "restored" and row["window"] == "all steps"), key=_value)
    null = next(
        row
        for row in rows
        if (row["site"], row["window"], row["kind"]) == (best["site"], "all steps", "another sample's")
    )
    best["headline"], null["headline"] = "trace_best_site", "trace_best_site_null"
    return rows


def drift_rows(world: LensWorld) -> list[Row]:
    """Mean change from one step to the next, encoder and decoder."""
    from probe.canvas import caption
    from probe.lenses import drift

    prompts = _captions(world)[: world.config.inverted]
    seeds = list(range(world.config.seed, world.config.seed + len(prompts)))
    found = drift(world.pipe, PROBED, [caption(p) for p in prompts], seeds).between_neighbours()
    change = {site: values.mean(1) for site, values in found.items()}  # (samples,)
    rows: list[Row] = []
    for name, blocks in (("encoder", ENCODER), ("decoder", DECODER)):
        values = np.mean([change[f"unet.{block}:out"] for block in blocks], axis=0)
        rows.append(_mean_row(f"1 - cosine of neighbouring steps, {name}", values, f"drift_{name}"))
    rows += [_mean_row("1 - cosine of neighbouring steps", values, None) | {"site": s} for s, values in change.items()]
    return rows


def inversion_rows(world: LensWorld) -> list[Row]:
    """Errors of both inversions at 20 steps, and of the autoencoder alone."""
    from probe.lenses import invert_images

    batch = world.renders
    images, captions = batch.images[: world.config.inverted], batch.captions[: world.config.inverted]
    rows: list[Row] = []
    for method in ("edit_friendly", "ddim"):
        found = invert_images(world.pipe, images, captions, method=method, steps=20, seed=world.config.seed)
        rows += [
            _mean_row(f"{method}: relative error of the state", found.state_error, f"{method}_state"),
            _mean_row(f"{method}: root mean square error of the picture", found.pixel_error, f"{method}_pixels"),
        ]
    rows.append(
        _mean_row("autoencoder alone: root mean square error of the picture", found.codec_error, "codec_pixels")
    )
    return rows


def _captions(world: LensWorld) -> list[dict[str, str]]:
    """Factor values of trained combinations whose object may be any other."""
    prompts = balanced(max(world.config.traced, world.config.inverted), seed=world.config.seed + 5)
    return [{factor: values[i] for factor, values in prompts.labels.items()} for i in range(len(prompts.prompts))]


def _mean_row(what: str, values: np.ndarray, headline: str | None) -> Row:
    mean = bootstrap_mean(values)
    row: dict[str, Any] = {"what": what, "value": mean.value, "low": mean.low, "high": mean.high, "n": len(values)}
    return row if headline is None else row | {"headline": headline}


def _value(row: Row) -> float:
    return float(row["value"])
