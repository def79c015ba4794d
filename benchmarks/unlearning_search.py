"""Where and how features are best edited to unlearn: `python -m benchmarks.unlearning_search WORK --out FILE`.

How the settings in `apps/unlearning/config.py` were found. Every variant is one way to unlearn with features: sites,
dictionary, selection, multiplier, branches, steps. It is tried on the validation prompts and seeds of some targets
(`CanvasWorld.validation`): prompts that are neither recorded nor scored, seeds of their own. A variant is not tuned for
a target, so the table compares ways, not searches.

    ua, ira, cra, ua_clean, artifacts, artifacts_retain    as in `probe/unlearning/protocol.py`, mean over targets

An interrupted run goes on where it was; WORK keeps the recorded activations, the dictionaries and every result.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from activations_store import ActivationStore
from apps.bench.unlearn.world import CanvasWorld
from apps.measurement import Measurement, write_json
from apps.stages import key_hash
from apps.unlearning.config import CROSS_ATTENTION, OBJECT_SITE, PHRASES, SITES, STYLE_SITE, TEXT
from apps.unlearning.edits import Sampling, setting_text
from apps.unlearning.text_dictionary import caption_variants, text_dictionary
from probe.capture import CapturePlan, collect
from probe.interventions import Intervention
from probe.model import generation_defaults, load_pipeline
from probe.unlearning import Setting, concept_steerer, deactivate, saeuron, search
from sae import ConceptScores, TrainConfig, load_sae, score_concepts, train

CROSS = tuple(CROSS_ATTENTION.values())
UP0 = CROSS[3:5]
METRICS = ("ua", "ua_clean", "ira", "cra", "artifacts", "artifacts_retain")
_OWN = Setting(n_features=8, multiplier=-1.5, relative=False, margin=2.0)
TARGETS = {"style": ("sketch", "flat", "clay", "dots"), "object": ("star", "house", "mushroom", "cat")}
"""Targets that every variant is tried on."""


@dataclass(frozen=True)
class Variant:
    """One way to unlearn.

    Attributes:
        name: what is special about it.
        factor: of its targets.
        sites: where features are edited.
        setting: of ``saeuron``; for ``deactivate`` its multiplier and number of features.
        d_sae, k: of the dictionaries.
        method: ``saeuron``, ``deactivate`` or ``concept_steerer``, whose strength is the setting's multiplier.
    """

    name: str
    factor: str
    sites: tuple[str, ...]
    setting: Setting = _OWN
    d_sae: int = 512
    k: int = 8
    method: str = "saeuron"

    @property
    def text(self) -> bool:
        """Whether it edits the text encoder."""
        return self.sites[0] in TEXT.values()


def variants() -> Iterator[Variant]:
    """The table, by factor; the second multiplier of a factor is that of all rows that do not say another."""
    for factor, sites, ladder in (("style", CROSS, (-1.0, -1.5, -2.5)), ("object", UP0, (-1.0, -2.0, -4.0))):
        own = replace(_OWN, multiplier=ladder[1])
        for gamma in (ladder[1], 0.0, ladder[0], ladder[2]):
            yield Variant(f"multiplier {gamma:g}", factor, sites, replace(own, multiplier=gamma))
        yield Variant("no margin", factor, sites, replace(own, margin=0.0))
        yield Variant("no margin, 2 features", factor, sites, replace(own, margin=0.0, n_features=2))
        for name, where in (
            ("all cross-attentions", CROSS),
            ("cross-attentions down and middle", CROSS[:3]),
            ("cross-attentions up 0", UP0),
            ("cross-attentions up 1", CROSS[5:]),
            ("output of the attention block up 0b", (OBJECT_SITE,)),
            ("output of up block 1", (STYLE_SITE,)),
        ):
            if where != sites:
                yield Variant(name, factor, where, own)
        name, site = next(iter(TEXT.items()))
        for gamma in (0.0, -1.0):
            text = replace(_OWN, n_features=4, multiplier=gamma)
            yield Variant(f"{name}, multiplier {gamma:g}", factor, (site,), text, 256, 4)
    # Tried on styles alone.
    own = replace(_OWN, n_features=16, multiplier=-1.0)
    yield Variant(f"{name}, deactivated -1", "style", (site,), own, 256, 4, "deactivate")
    yield Variant(f"{name}, steered -0.5", "style", (site,), replace(_OWN, multiplier=-0.5), 256, 4, "concept_steerer")
    for first, last in ((0, 5), (5, 10)):
        own = replace(_OWN, steps=tuple(range(first, last)))
        yield Variant(f"steps {first} to {last - 1}", "style", CROSS, own)


@dataclass
class Search:
    """A search in its folder."""

    work: Path
    validation: tuple[int, int]

    @cached_property
    def pipe(self) -> Any:
        """Canvas."""
        return load_pipeline("canvas")

    @cached_property
    def world(self) -> CanvasWorld:
        """What is recorded and what is validated on."""
        default = generation_defaults(self.pipe)
        return CanvasWorld(Sampling(default.steps, default.guidance), n_recorded=480)

    @cached_property
    def store(self) -> ActivationStore:
        """Recorded activations."""
        s, recorded = self.world.sampling, self.world.recorded
        plan = CapturePlan.for_pipeline(
            self.pipe, SITES, recorded.prompts, labels=recorded.labels, steps=s.steps, guidance=s.guidance,
            images=False,
        )  # fmt: skip
        show = lambda done, total: print(f"\rrecord {done}/{total}", end="", flush=True)  # noqa: E731
        return collect(self.pipe, plan, self.work / "store", progress=show)

    def dictionary(self, site: str, d_sae: int, k: int, factor: str) -> tuple[Any, ConceptScores]:
        """A site's dictionary and its concept scores."""
        folder = self.work / "sae" / f"{site.removesuffix(':out')}-{d_sae}-{k}"
        text = site in TEXT.values()
        branches = ("cond",) if text else ("uncond", "cond")
        config = TrainConfig(site=site, d_sae=d_sae, k=k, rows=600_000, batch_size=2048, branches=branches)
        if text:
            rows = self.work / "text" / site
            store = text_dictionary(self.pipe, config, caption_variants(self.world.recorded), rows, folder).store
        else:
            store = self.store
            train(store, config, folder)
        if not (folder / "scores" / factor / "scores.json").is_file():
            for name, scores in score_concepts(load_sae(folder), store, ["object", "style"]).items():
                scores.save(folder / "scores" / name)
        return load_sae(folder), ConceptScores.load(folder / "scores" / factor)

    def edits(self, v: Variant, label: str) -> tuple[Intervention, ...]:
        """The edits of a target."""
        found: list[Intervention] = []
        for site in v.sites:
            sae, scores = self.dictionary(site, v.d_sae, v.k, v.factor)
            phrase, given = PHRASES[v.factor].format, {"dictionary": sae, "site": site}
            if v.method == "deactivate":
                others = [phrase(other) for other in self.world.labels[v.factor] if other != label]
                n, gamma = v.setting.n_features, v.setting.multiplier
                found += deactivate(self.pipe, [phrase(label)], others, n_features=n, multiplier=gamma, **given)
            elif v.method == "concept_steerer":
                found += concept_steerer(self.pipe, phrase(label), strength=v.setting.multiplier, **given)
            else:
                times = None if v.text else [int(t) for t in self.store.spec.timesteps]
                found += saeuron(scores, label, setting=v.setting, timesteps=times, **given)
        return tuple(found)

    def result(self, v: Variant, label: str) -> dict[str, Any]:
        """Scores of a variant on a target, read if they are there."""
        key = key_hash({"variant": asdict(replace(v, name="")), "label": label, "n": self.validation})
        path = self.work / "results" / f"{key}.json"
        if not path.is_file():
            grid = self.world.validation(v.factor, label, *self.validation)
            best = search(
                self.pipe, self.world.judge, grid, (v.factor, label), {v.name: self.edits(v, label)},
                **asdict(self.world.sampling),
            )[0]  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {m: best.scores[m].value for m in METRICS})
        return json.loads(path.read_text())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of what is made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a fraction of the variants, targets and images")
    parser.add_argument("--factor", choices=("object", "style"), help="one factor only; for two processes")
    args = parser.parse_args()
    run = Search(args.work, (2, 2) if args.quick else (12, 12))
    chosen = [v for v in variants() if args.factor in (None, v.factor)]
    rows = []
    for v in chosen[:: len(chosen) // 2] if args.quick else chosen:
        labels = TARGETS[v.factor][: 1 if args.quick else None]
        results = [run.result(v, label) for label in labels]
        row = {"variant": v.name, "factor": v.factor, "sites": len(v.sites), "d_sae": v.d_sae, "k": v.k}
        row |= {"setting": setting_text(v.setting), "method": v.method, "targets": len(labels)}
        row |= {m: float(np.mean([r[m] for r in results])) for m in METRICS}
        row["mean"] = float(np.mean([row[m] for m in ("ua", "ira", "cra")]))
        rows.append(row)
        print(f"\r{v.factor} {v.name}: " + ", ".join(f"{m} {row[m]:.3f}" for m in METRICS), flush=True)
    config = {"targets": TARGETS, "validation": run.validation, "recorded": run.world.n_recorded}
    Measurement("unlearning_search", rows, {}, config=config).write(args.out)


if __name__ == "__main__":
    main()
