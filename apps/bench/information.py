"""What do words tell about an image, and how far can the numbers be believed? Canvas, where both answers are known.

Renders of canvas, whose words and object masks are exact, go through the model's denoiser at a few dozen noise levels
under many captions (``probe.information``). Four questions, each with its own table of errors:

    words      does the map of the object's word lie on the object, and what limits it?
    labels     are labels read off the errors, and how near is their information to its exact value, log of the number
               of values?
    pairs      do words that say the same share their information, and words that need each other not?
    removals   does a word's information say how much the image changes when the word is left out?

Tables are stores in the work folder: an interrupted run goes on where it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from apps.bench.information_labels import label_columns, label_rows
from apps.bench.information_limits import limit_rows
from apps.bench.information_maps import localisation_rows
from apps.bench.information_pairs import pair_columns, pair_rows
from apps.bench.information_removals import draw_removals, removal_columns, removal_rows
from apps.errors import OutputExists
from apps.measurement import Measurement, read_json, write_json
from apps.object_masks import covered
from apps.progress import bar, table
from apps.runs import Run
from apps.stages import Say, Stages, key_hash

if TYPE_CHECKING:
    import torch

    from probe.information import Column, Nodes, NodeTable
    from probe.model import PipelineEps

Row = dict[str, Any]
CONFIG = "bench.json"


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    images: int = 48  # renders whose words get maps; half of them choose thresholds
    nodes: int = 24  # noise levels of each
    label_images: int = 40  # renders whose labels are read
    label_nodes: int = 12
    pair_images: int = 24  # renders for pairs of words
    removals: int = 16  # captions whose words are left out, one after the other
    batch_size: int = 64
    seed: int = 4  # of the data set of renders


QUICK = BenchConfig(images=8, nodes=6, label_images=6, label_nodes=6, pair_images=6, removals=4)


class World(NamedTuple):
    """Renders with what is known of them.

    Attributes:
        images: uint8 (n, 64, 64, 3).
        captions, names: the captions, and their words by factor.
        x: clean samples.
        masks: (n, 256) bool, cells of the denoiser's grid of which the object covers half.
    """

    images: np.ndarray
    captions: list[str]
    names: list[dict[str, str]]
    x: torch.Tensor
    masks: np.ndarray


def bench_information(
    model: PipelineEps, config: BenchConfig, work: Path, say: Say, *, device: str = "cpu"
) -> Measurement:
    """Run everything that is not done yet in ``work``.

    Raises:
        OutputExists: ``work`` holds another bench.
    """
    from probe.canvas import FACTORS
    from probe.information import Nodes, TruncatedWindow
    from probe.model import fingerprint

    claim(work, config)
    stages = Stages(Run(work), say, n_stages=6 + len(FACTORS))
    world = renders(model, max(config.images, config.label_images, config.pair_images), config.seed)

    def place(n: int) -> Nodes:
        found = stages.do(f"nodes-{n}", f"{n} nodes where captions tell most", asdict(config), lambda: nodes(n))
        return Nodes.from_record(found)

    def nodes(n: int) -> Mapping[str, Any]:
        from probe.information import Column, adaptive_nodes

        some = min(8, len(world.captions))
        pilot = [Column("empty"), Column("caption", world.captions[:some])]
        return adaptive_nodes(model, world.x[:some], pilot, n, pilot=min(2 * n, 24), batch=config.batch_size).record()

    def collected(name: str, x: torch.Tensor, columns: Sequence[Column], nodes: Nodes) -> NodeTable:
        from probe.information import collect_table, open_table

        path = work / "tables" / name
        with bar(name, "evaluation") as progress:
            collect_table(path, model, x, columns, nodes, batch=config.batch_size, progress=progress)
        return open_table(path)

    def rows_of(name: str, title: str, work_: Callable[[], list[Row]]) -> list[Row]:
        with warnings.catch_warnings():
            # The model's own schedule ends before the gap does; what is missing stands in the rows.
            warnings.simplefilter("ignore", TruncatedWindow)
            return stages.do(name, title, asdict(config), lambda: {"rows": work_()})["rows"]

    many, few = place(config.nodes), place(config.label_nodes)

    def words() -> list[Row]:
        n = config.images
        found = collected("words", world.x[:n], word_columns(world.names[:n]), many)
        return localisation_rows(model, found, first(world, n))

    def limits() -> list[Row]:
        n = config.images
        return limit_rows(collected("words", world.x[:n], word_columns(world.names[:n]), many), first(world, n))

    def labels(factor: str) -> list[Row]:
        n = config.label_images
        columns = label_columns(world.names[:n], factor)
        found = collected(f"label-{factor}", world.x[:n], columns, few)
        return label_rows(found, factor, [names[factor] for names in world.names[:n]])

    def pairs() -> list[Row]:
        n = config.pair_images
        return pair_rows(collected("pairs", world.x[:n], pair_columns(world.names[:n]), few))

    def removals() -> list[Row]:
        drawn = draw_removals(model, config.removals, config.seed, work / "removals.npz", config.batch_size)
        found = collected("removals", drawn.x, removal_columns(drawn.names), many)
        return removal_rows(model, found, drawn)

    rows = rows_of("words", f"maps of words on {config.images} renders", words)
    rows += rows_of("limits", "what limits the maps", limits)
    for factor in FACTORS:
        rows += rows_of(f"label-{factor}", f"{factor} read off the errors", lambda factor=factor: labels(factor))
    rows += rows_of("pairs", "pairs of words", pairs)
    rows += rows_of("removals", f"{config.removals} captions with words left out", removals)
    about = {**asdict(config), "model": fingerprint(model.pipe), "window": list(many.window)}
    return Measurement("bench.information", rows, ratios(rows), device=device, config=about)


def renders(model: PipelineEps, n: int, seed: int) -> World:
    """Renders of trained combinations."""
    from PIL import Image

    from probe.canvas import parse_caption, render_batch
    from probe.capture.noising import encode

    batch = render_batch(range(n), seed=seed)
    x = encode(model.pipe, batch.images, model.sample_shape)
    grid = (int(x.shape[2]), int(x.shape[3]))
    masks = np.stack([covered(Image.fromarray(mask), grid) for mask in batch.masks])
    return World(batch.images, batch.captions, [parse_caption(text) for text in batch.captions], x, masks)


def first(world: World, n: int) -> World:
    """The first n images of a world."""
    return World(world.images[:n], world.captions[:n], world.names[:n], world.x[:n], world.masks[:n])


def word_columns(names: Sequence[Mapping[str, str]]) -> list[Column]:
    """The columns of all four words, left-out clauses said as the model's training says them."""
    from probe.canvas import FACTORS, partial_caption
    from probe.information import caption_columns

    words = {factor: [given[factor] for given in names] for factor in FACTORS}
    captions = [partial_caption(given) for given in names]
    return caption_columns(captions, words, pairs=[("object", "colour")], say=partial_caption, restate=True)


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """The named numbers."""
    found: dict[str, float | None] = {}
    for row in rows:
        if row["part"] == "localisation":
            name = row["method"].replace(" x ", "_x_").replace(" ", "_")
            found[f"iou_{name}"], found[f"auc_{name}"] = row["iou"], row["auc"]
        elif row["part"] == "limits":
            kind = f"{row['method']} {row['kind']}".replace(" ", "_").replace("'", "")
            found[f"limit_{kind}_iou"], found[f"limit_{kind}_matched"] = row["iou"], row["matched"]
        elif row["part"] == "labels":
            name = row["factor"]
            found[f"accuracy_{name}"] = row["accuracy"]
            for kind in ("posterior", "at_least", "standard", "orthogonal", "standard_before"):
                found[f"{kind}_over_entropy_{name}"] = row[kind] / row["entropy"]
        elif row["part"] == "pairs":
            name = f"{row['pair'].replace(' ', '_')}_{row['form']}"
            found |= {f"{kind}_{name}": row[kind] for kind in ("redundant", "synergistic", "common")}
        else:
            name = f"{row['level']}_{row['method'].replace(' x ', '_x_').replace(' ', '_')}"
            found[f"removal_{name}_pearson"], found[f"removal_{name}_rank"] = row["pearson"], row["rank"]
    return found


def information_tables(rows: Sequence[Row]) -> str:
    """The tables that people read."""
    parts = []
    for part, columns in (
        ("localisation", ("method", "iou", "iou_low", "iou_high", "auc", "auc_low", "auc_high")),
        ("limits", ("method", "kind", "below", "blur", "iou", "auc", "matched", "matched_low", "matched_high")),
        (
            "labels",
            ("factor", "accuracy", "entropy", "posterior", "standard", "orthogonal", "decided_at", "standard_after"),
        ),
        ("pairs", ("pair", "form", "first", "second", "both", "redundant", "synergistic", "common")),
        ("removals", ("method", "level", "pearson", "pearson_low", "pearson_high", "rank", "n")),
    ):
        body = [[_cell(row.get(c)) for c in columns] for row in rows if row["part"] == part]
        parts.append(table([c.replace("_", " ") for c in columns], body))
    return "\n\n".join(parts)


def claim(work: Path, config: BenchConfig) -> None:
    """Make the folder this bench's own.

    Raises:
        OutputExists: it is another's.
    """
    path, wanted = work / CONFIG, asdict(config)
    if path.is_file() and key_hash(read_json(path)) != key_hash(wanted):
        raise OutputExists(f"{str(work)!r} holds a bench with other settings; choose another --work, or remove it.")
    write_json(path, wanted)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)
