"""Every direction finder side by side, on canvas, where what there is to find is known.

Renders with known factors are brought to a few noise levels; the rows of one site go into a training and a test
store. Every finder is asked for four concepts, one value of each factor, and is measured in two ways. *Reading*: the
area under the ROC curve of the projection in the test rows, where the vectors are rows of the site. *Writing*: prompts
without the concept are drawn with the finder's edit, and the judge says how far the concept's probability rose and what
else changed. How candidates are chosen and scored: ``directions_scores``; the finders: ``directions_entrants``.

False discoveries: finders on labelled rows are fitted to shuffled labels, the others choose among their vectors by
shuffled labels; a concept is found if its AUC in the test rows, shuffled alike, passes a one-sided Mann-Whitney test at
5 %. Cost of a fit: rows that pass through the denoiser, products with Jacobians, and CPU seconds.

One stage a finder; what is done in the work folder is not done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.directions_data import Drawing, Relabelled, collect_rows, open_part, prompts_of, readings_of, seeds_of
from apps.bench.directions_entrants import entrants
from apps.bench.directions_scores import Outcome, Readings, Row, best_reader, effect_row, reading_row
from apps.bench.directions_world import CONCEPTS, Concept, Entrant, Found, World
from apps.directions.cost import counted
from apps.errors import InvalidOption
from apps.measurement import Measurement
from apps.progress import bar, table
from apps.runs import site_name
from apps.stages import Say, Stages

if TYPE_CHECKING:
    from probe.canvas import Judge
    from probe.model.pipeline import Pipeline

FINDERS = tuple(entrants())


@dataclass(frozen=True)
class DirectionsConfig:
    """What is measured."""

    site: str = "up_blocks.1"
    train: int = 320  # renders whose rows finders learn from
    test: int = 240  # renders whose rows score
    levels: int = 2  # noise levels, evenly over the schedule without its first
    tokens: int = 32  # cells of the site's map that are stored
    steps: int = 5  # denoising steps of the drawn images
    prompts: int = 16  # images an edit: half choose, half score
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)  # in root mean square lengths of the site's rows
    k: int = 3  # vectors of finders that the judge chooses among
    iterations: int = 60  # of finders that are trained
    shuffles: int = 5  # orders of the labels for false discoveries
    finders: tuple[str, ...] = FINDERS
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.finders) - set(FINDERS)
        if unknown or not self.finders:
            raise InvalidOption(
                f"bench directions: finders {', '.join(sorted(unknown)) or 'none'}; known: {', '.join(FINDERS)}."
            )


QUICK = DirectionsConfig(
    train=160, test=120, prompts=4, k=2, strengths=(1.0,), iterations=4, shuffles=1,
    finders=(
        "mean difference", "PCA", "concept vector", "prompt difference", "NoiseCLR", "random, 24", "h Jacobian",
        "pullback", "latent SVD",
    ),
)  # fmt: skip


def bench_directions(
    pipe: Pipeline, judge: Judge, config: DirectionsConfig, work: Path, say: Say, *, device: str = "cpu"
) -> Measurement:
    """Run everything that is not done yet in ``work``."""
    from apps.runs import Run
    from probe.directions import self_generated
    from probe.model import PipelineEps, fingerprint

    run = Run(work)
    stages = Stages(run, say, n_stages=2 + len(config.finders))
    shared = {name: value for name, value in asdict(config).items() if name != "finders"}
    stages.do("stores", f"{config.train + config.test} renders, rows of {config.site}", shared,
              lambda: collect_rows(pipe, config, work))  # fmt: skip
    train, test = (open_part(work / part) for part in ("train", "test"))
    site = train.sites[0]
    readings = readings_of(train, site), readings_of(test, site)
    model = PipelineEps(pipe)
    prompts = prompts_of(config)
    samples = self_generated(model, prompts, [900 + i for i in range(len(prompts))], steps=config.steps)
    world = World(
        model, train, site, np.sqrt((readings[0].rows ** 2).sum(2).mean(1)), prompts, seeds_of(config), config.steps,
        config.k, config.iterations, samples, config.seed,
    )  # fmt: skip
    drawn = Drawing(pipe, judge, prompts, world.seeds, config.steps)
    stages.do("plain", f"{config.prompts} images without an edit", shared, lambda: {"agreement": drawn.agreement()})

    def measured(entrant: Entrant) -> list[Row]:
        with bar(entrant.name, "edit") as progress:
            return _measure(entrant, world, readings, drawn, config, progress)

    rows: list[Row] = []
    known = entrants()
    for name in config.finders:
        key = shared | {"finder": name, "store": train.hashes}
        key |= {"strengths": known[name].strengths} if known[name].strengths else {}
        made = stages.do(finder_stage(name), name, key, lambda name=name: {"rows": measured(known[name])})
        rows += made["rows"]
    rows = [{"products": None} | row for row in rows]  # only finders on a Jacobian have any
    about = {**asdict(config), "model": fingerprint(pipe), "concepts": ["=".join(c) for c in CONCEPTS]}
    return Measurement("bench.directions", rows, _ratios(rows), device=device, config=about)


def finder_stage(name: str) -> str:
    """Name of the stage in which a finder is measured."""
    return f"finder-{_file_name(name)}"


def directions_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table that people read: a line a finder."""
    header = [
        "finder",
        *(f"{f}: AUC, gain" for f, _ in CONCEPTS),
        "other changes",
        "found, shuffled",
        "NFE",
        "products",
        "CPU s",
    ]
    body = []
    for row in rows:
        cells = [row["finder"]]
        for factor, _ in CONCEPTS:
            auc = row[f"auc_{factor}"]
            cells.append(f"{'-' if auc is None else f'{auc:.2f}'}, {row[f'gain_{factor}']:+.2f}")
        shuffled = row["found_shuffled"]
        cells += [f"{row['off']:.2f}", "-" if shuffled is None else f"{row['found']:.0%}, {shuffled:.0%}"]
        body.append([*cells, f"{row['evaluations']:.0f}", f"{row['products'] or 0}", f"{row['cpu_s']:.1f}"])
    return table(header, body)


def _measure(
    entrant: Entrant,
    world: World,
    readings: tuple[Readings, Readings],
    drawn: Drawing,
    config: DirectionsConfig,
    progress: Any,
) -> list[Row]:
    """One row: everything about a finder."""
    train, test = readings
    strengths = entrant.strengths or config.strengths
    row: Row = {"finder": entrant.name, "chosen": entrant.kind, "strengths": ", ".join(f"{s:g}" for s in strengths)}
    found: dict[Concept, Found] = {}
    with counted(world.model.pipe) as cost:
        for concept in CONCEPTS:
            if entrant.kind == "named" or not found:
                found[concept] = entrant.find(world, concept if entrant.kind == "named" else None)
            else:
                found[concept] = next(iter(found.values()))
    row |= {"site": _site_of(next(iter(found.values()))), "vectors": found[CONCEPTS[0]].k}
    products = [f.products for f in {id(f): f for f in found.values()}.values() if f.products is not None]
    row |= {"evaluations": cost.evaluations, "cpu_s": cost.cpu_s} | ({"products": sum(products)} if products else {})
    chosen = {concept: _candidates(entrant, found[concept], train, world, concept) for concept in CONCEPTS}
    edits = {(id(found[c]), component, sign * s) for c in CONCEPTS for component, sign in chosen[c] for s in strengths}
    outcomes: dict[tuple[int, int, float], Outcome] = {}
    by_id = {id(f): f for f in found.values()}
    for i, (which, component, strength) in enumerate(sorted(edits)):
        outcomes[which, component, strength] = drawn.outcome([edit(component, strength) for edit in by_id[which].edits])
        progress(i + 1, len(edits))
    chosen_on = np.arange(config.prompts) % 2 == 0
    gains, offs, true, shuffled = [], [], [], []
    for concept in CONCEPTS:
        factor = concept[0]
        mine = {
            (component, sign * s): outcomes[id(found[concept]), component, sign * s]
            for component, sign in chosen[concept]
            for s in strengths
        }
        effect = effect_row(drawn.plain, mine, concept, chosen_on)
        reading = _reading(found[concept], chosen[concept], test, world, concept)
        row |= {f"{name}_{factor}": value for name, value in {**effect, **reading}.items() if name != "p"}
        gains.append(effect["gain"])
        offs.append(effect["off"])
        if reading["auc"] is not None:
            true.append(reading["p"] < 0.05)
        shuffled += _shuffled(entrant, found[concept], readings, world, concept, config)
    row |= {"gain": float(np.mean(gains)), "off": float(np.mean(offs))}
    row |= {"found": float(np.mean(true)) if true else None}
    return [row | {"found_shuffled": float(np.mean(shuffled)) if shuffled else None}]


def _candidates(
    entrant: Entrant, found: Found, train: Readings, world: World, concept: Concept
) -> list[tuple[int, float]]:
    """(component, sign) of the vectors that may stand for a concept."""
    if entrant.kind == "named":
        return [(0, 1.0)]
    if entrant.kind == "tried":
        return [(component, sign) for component in range(found.k) for sign in (1.0, -1.0)]
    return [best_reader(train, _vectors(found, world), *concept)]


def _reading(found: Found, chosen: Sequence[tuple[int, float]], test: Readings, world: World, concept: Concept) -> Row:
    """How well the one candidate reads; nothing where there are several, or the vectors are no rows of the site."""
    if found.direction is None or len(chosen) > 1:
        return {"auc": None, "auc_low": None, "auc_high": None, "cosine": None}
    component, sign = chosen[0]
    vectors = _vectors(found, world)[:, component] * sign
    positive = test.labels[concept[0]] == concept[1]
    difference = test.rows[:, positive].mean(1) - test.rows[:, ~positive].mean(1)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(difference, axis=1)
    cosine = float(((vectors * difference).sum(1) / lengths.clip(1e-12)).mean())
    return reading_row(test, vectors, *concept) | {"cosine": cosine}


def _shuffled(
    entrant: Entrant,
    found: Found,
    readings: tuple[Readings, Readings],
    world: World,
    concept: Concept,
    config: DirectionsConfig,
) -> list[bool]:
    """Whether the concept is "found" with labels in random order, once for each order."""
    if not (entrant.rows_only or (entrant.kind == "read" and found.direction is not None)):
        return []
    discoveries = []
    for i in range(config.shuffles):
        train, test = (part.shuffled(config.seed + 100 * i + 1) for part in readings)
        if entrant.rows_only:
            relabelled: Any = Relabelled(world.store, train.labels)
            again, component, sign = entrant.find(replace(world, store=relabelled), concept), 0, 1.0
        else:
            again, (component, sign) = found, best_reader(train, _vectors(found, world), *concept)
        vectors = _vectors(again, world)[:, component] * sign
        discoveries.append(reading_row(test, vectors, *concept)["p"] < 0.05)
    return discoveries


def _vectors(found: Found, world: World) -> np.ndarray:
    """(n_steps, k, d) vectors for the store's steps."""
    assert found.direction is not None
    vectors, n = found.direction.flat.numpy(), len(world.sizes)
    return vectors if len(vectors) == n else np.broadcast_to(vectors.mean(0), (n, *vectors.shape[1:]))


def _site_of(found: Found) -> str:
    items = found.edits[0](0, 1.0)
    return site_name(str(items[0].site)) if len(items) == 1 else f"{len(items)} weights"


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def _ratios(rows: list[Row]) -> dict[str, float | None]:
    """The named numbers: the best of each measure, and the controls beside it."""
    by_name = {row["finder"]: row for row in rows}
    ratios: dict[str, float | None] = {}
    for factor, _ in CONCEPTS:
        read = [row[f"auc_{factor}"] for row in rows if row[f"auc_{factor}"] is not None]
        ratios[f"best_auc_{factor}"] = max(read) if read else None
        ratios[f"best_gain_{factor}"] = max(row[f"gain_{factor}"] for row in rows)
    for name in ("random, 24", "random in the prompt", "random maps", "random in the state"):
        if name in by_name:
            ratios[f"gain_{_file_name(name)}"] = by_name[name]["gain"]
    shuffled = [row["found_shuffled"] for row in rows if row["found_shuffled"] is not None]
    ratios["found_shuffled"] = float(np.mean(shuffled)) if shuffled else None
    return ratios
