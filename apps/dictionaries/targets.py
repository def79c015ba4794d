"""Which dictionaries ``denoscope sae`` works on, and the order of the work.

A path is a run (all its dictionaries, or those named) or the folder of a dictionary, whose rows then come from
``--store`` or from the run that it lies in. A part that is finished is kept in a stage record, so an interrupted
evaluation goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption, RunNotFound, UnknownName
from apps.progress import bar
from apps.runs import STORE_MARK, Run, find_site, run_of, store_folder
from apps.stages import Stages, file_hash

if TYPE_CHECKING:
    import numpy as np

    from activations_store import ActivationStore
    from apps.dictionaries.evaluate import Row
    from probe.canvas import Judge
    from sae import OpenedSAE

_TRIAL_ROWS = 20_000
_CONCEPT_PASSES = 10  # five kinds of units, scores and maps


@dataclass(frozen=True)
class Target:
    """One dictionary with the rows that it is measured on."""

    name: str
    folder: Path
    owner: Run
    store: Path
    site: str
    sae: OpenedSAE

    def key(self) -> dict[str, Any]:
        """What a result depends on: every file of the dictionary, and which samples there are."""
        from activations_store import ActivationStore
        from sae.data import store_identity

        files = [self.folder] if self.folder.is_file() else sorted(self.folder.iterdir())
        kept = [p for p in files if p.is_file() and p.suffix in (".json", ".safetensors")]
        hashes = {p.name: file_hash(p) for p in kept}
        return {"files": hashes, "store": store_identity(ActivationStore.open(self.store)), "site": self.site}


def find_targets(
    paths: Sequence[Path], names: Sequence[str] | None, store: Path | None, site: str | None, k: int | None
) -> list[Target]:
    """The dictionaries of some runs and folders, opened and checked against their rows.

    Raises:
        InvalidOption: a store or a site is missing, or two dictionaries have one name. UnknownName, RunNotFound, and
            the errors of ``sae.open_sae``.
    """
    from activations_store import ActivationStore
    from apps.checks import check_dictionary
    from sae import open_sae

    found: list[Target] = []
    for name, folder, owner in _folders(paths, names):
        if not folder.exists():
            raise RunNotFound(f"{str(folder)!r} does not exist; give a run, or the folder of a dictionary.")
        rows = owner.store if store is None else store_folder(store)
        if not (rows / STORE_MARK).is_file():
            raise InvalidOption(f"{name}: there is no store in {str(rows)!r}; give the one with its rows as --store.")
        opened = ActivationStore.open(rows)
        # Where a folder names its site, another one is refused; where it does not, this one is taken.
        sae = open_sae(folder, k=k, site=None if site is None else find_site(opened, site))
        if not sae.config.site:
            if len(opened.sites) > 1:
                raise InvalidOption(
                    f"{name}: the folder does not say which site it reads; give --site, one of "
                    f"{', '.join(opened.sites)}."
                )
            sae = open_sae(folder, k=k, site=next(iter(opened.sites)))
        check_dictionary(sae, folder, opened)
        found.append(Target(name, folder, owner, rows, sae.config.site, sae))
    twice = [t.name for t in found if sum(t.name == other.name for other in found) > 1]
    if twice:
        raise InvalidOption(f"two dictionaries are called {twice[0]!r}; evaluate them one after the other.")
    return found


def _folders(paths: Sequence[Path], names: Sequence[str] | None) -> Iterator[tuple[str, Path, Run]]:
    for path in paths:
        run = Run(path)
        if run.saes():
            for name in names or run.saes():
                yield name, run.sae(name), run
        elif names:
            raise UnknownName(f"{str(path)!r} is no run with dictionaries, so --sae {names[0]} means nothing there.")
        elif run.exists():
            run.sae()  # says how to train one
        else:
            yield path.resolve().name, path, run_of(path)[0]


def measure_all(targets: Sequence[Target], options: argparse.Namespace, stages: Stages) -> list[Row]:
    """All rows of an evaluation."""
    from activations_store import ActivationStore
    from apps.dictionaries.evaluate import cosine_rows, grid_rows, reconstruction_rows, recovery_rows

    substitute = bool(options.substitute)
    stages.n_stages = sum(1 + wants_concepts(t, options) for t in targets) + options.grid + substitute
    rows: list[Row] = []
    limit = options.max_rows
    for t in targets:
        store = ActivationStore.open(t.store)
        key = {**t.key(), "max_rows": limit}

        def reconstruct(t: Target = t, store: ActivationStore = store) -> dict[str, Any]:
            with bar(t.name, "row") as progress:
                return {"rows": reconstruction_rows(t.name, t.sae, store, t.site, limit, progress)
                        + cosine_rows(t.name, t.sae)}  # fmt: skip

        rows += stages.do(f"reconstruction-{t.name}", f"{t.name}: reconstruction", key, reconstruct)["rows"]
        if wants_concepts(t, options):
            factors = tuple(options.factors or store.factors)

            def concepts(t: Target = t, store: ActivationStore = store, factors=factors) -> dict[str, Any]:
                made = recovery_rows(
                    t.name, t.sae, store, t.site, factors=factors, bar=lambda s: bar(s, "sample"), max_rows=limit
                )
                return {"rows": made}

            key = {**key, "factors": factors}
            rows += stages.do(f"concepts-{t.name}", f"{t.name}: concepts", key, concepts)["rows"]
    first = ActivationStore.open(targets[0].store)
    keys = {t.name: t.key() for t in targets}
    if options.grid:
        named = {t.site: (t.name, t.sae) for t in targets if t.store == targets[0].store}
        factors = tuple(options.factors or first.factors)

        def grid() -> dict[str, Any]:
            with bar("class spread and probe", "cell") as progress:
                return {"rows": grid_rows(first, named, factors=factors, max_rows=limit, progress=progress)}

        key = {**keys, "max_rows": limit, "factors": factors}
        rows += stages.do("grid", "class spread and probe over sites and steps", key, grid)["rows"]
    if substitute:
        key = {**keys, "n": options.substitute, "at": options.at_steps, "model": options.model}
        rows += stages.do(
            "substitution", f"{options.substitute} generations with dictionaries in place", key,
            lambda: {"rows": _substitution(targets, first, options)},
        )["rows"]  # fmt: skip
    return rows


def wants_concepts(target: Target, options: argparse.Namespace) -> bool:
    """Whether the store has labels and nobody said no."""
    from activations_store import ActivationStore
    from apps.errors import NoLabels

    known = ActivationStore.open(target.store).factors
    unknown = [factor for factor in options.factors or () if factor not in known]
    if unknown:
        raise NoLabels(f"{str(target.store)!r} has no labels of {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    return bool(known) and not options.no_concepts


def estimate_lines(targets: Sequence[Target], options: argparse.Namespace) -> list[str]:
    """What will be read and for how long, from a trial on a few rows."""
    from activations_store import ActivationStore
    from sae import evaluate
    from sae.data import select

    lines = []
    for t in targets:
        store = ActivationStore.open(t.store)
        chosen = select(store, t.site, max_rows=options.max_rows, blocks=t.sae.config.blocks)
        start = time.perf_counter()
        tried = evaluate(t.sae, store, site=t.site, max_rows=_TRIAL_ROWS)["rows"]
        seconds = (time.perf_counter() - start) / tried * chosen.n_rows
        passes = 1 + wants_concepts(t, options) * _CONCEPT_PASSES // len(store.spec.branches)
        size = chosen.n_rows * chosen.channels * 4 / 2**20
        lines.append(
            f"{t.name}: {t.sae.config.d_sae} features at {t.site}; {chosen.n_rows} rows ({size:.0f} MiB in float32), "
            f"read {passes} times, about {seconds * passes:.0f} s"
        )
    if options.grid and targets:
        store = ActivationStore.open(targets[0].store)
        lines.append(f"grid: {len(store.sites)} sites x {store.spec.n_steps} steps, each read once or twice")
    if options.substitute:
        calls = 2 * len(_rounds(targets)) + 6 * len(targets)
        lines.append(f"substitution: {options.substitute} generations of {calls} denoiser calls a step")
    return lines


def _substitution(targets: Sequence[Target], store: ActivationStore, options: argparse.Namespace) -> list[Row]:
    """Generations of the store's own prompts from other noise."""
    import numpy as np

    from apps.checks import check_model
    from apps.commands._options import load_model
    from apps.dictionaries.evaluate import substitution_rows
    from apps.dictionaries.substitution import substitute
    from apps.judging import judge_of

    options.model = options.model or store.fingerprint.get("name")
    if not options.model:
        raise InvalidOption("--substitute: the store does not name its model; give --model.")
    options.precision = store.fingerprint.get("dtype", "float32")
    pipe = load_model(options)
    check_model(pipe, store.fingerprint, store.path)
    every = store.samples.column("prompt").to_pylist()
    at = np.linspace(0, len(every) - 1, min(options.substitute, len(every))).round().astype(int)
    prompts = [every[i] for i in at]
    first_seed = max(store.samples.column("seed").to_pylist()) + 1
    labels, seen = _reader(judge_of(pipe), store, at)
    rows: list[Row] = []
    for by_site in _rounds(targets):
        with bar(f"substitution of {', '.join(t.name for t in by_site.values())}", "call") as progress:
            found = substitute(
                pipe, {site: t.sae for site, t in by_site.items()}, prompts,
                range(first_seed, first_seed + len(prompts)), steps=store.plan.get("steps"),
                guidance=store.plan.get("guidance"), at_steps=options.at_steps, batch_size=options.batch_size,
                progress=progress,
            )  # fmt: skip
        rows += substitution_rows(found, {site: t.name for site, t in by_site.items()}, labels, seen)
    return rows


def _rounds(targets: Sequence[Target]) -> list[dict[str, Target]]:
    """By site, in as few groups as possible: one dictionary at a time stands in the place of a site."""
    rounds: list[dict[str, Target]] = []
    for t in targets:
        free = next((by_site for by_site in rounds if t.site not in by_site), None)
        if free is None:
            rounds.append(free := {})
        free[t.site] = t
    return rounds


def _reader(judge: Judge | None, store: ActivationStore, at: np.ndarray) -> tuple[Any, Any]:
    """What some samples' prompts ask for, and the judge as a function of images; (None, None) where nobody knows."""
    import numpy as np

    if judge is None:
        return None, None
    from probe.canvas import FACTORS

    labels = {f: np.asarray(store.labels(f))[at].tolist() for f in store.factors if f in FACTORS}

    def seen(images: np.ndarray) -> dict[str, Any]:
        verdict = judge(images)
        return {factor: verdict.labels(factor) for factor in labels}

    return (labels, seen) if labels else (None, None)
