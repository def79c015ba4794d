"""The whole story on the embedded world: collect, learn, find, unlearn, steer, judge, report.

Each stage leaves its output in the run folder and is skipped when it is there already and was made from the same
things, so a run that was stopped at any moment goes on from there, and a changed setting repeats only what depends
on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.demo.config import DemoConfig
from apps.errors import OutputExists
from apps.images import save_png
from apps.measurement import Measurement, bootstrap_mean, read_json, write_json
from apps.progress import bar
from apps.prompts import balanced
from apps.runs import Run, site_name
from apps.stages import Say, Stages, file_hash, key_hash
from apps.unlearning import edits as unlearning
from apps.unlearning.unedited import unedited_images

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from activations_store import ActivationStore
    from probe.canvas import Judge

STEER_SEED = 3_000_000
MARK = "demo.json"


def run_demo(
    config: DemoConfig,
    out: str | Path,
    *,
    say: Say = print,
    pipe: DiffusionPipeline | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Run every stage that is not done yet.

    Args:
        config: what to do.
        out: run folder.
        say: where lines for people go.
        pipe, judge: instead of the shipped ones.

    Returns:
        The measurement that is in ``results.json``.

    Raises:
        OutputExists: the folder holds something that no demo made.
    """
    from apps.demo.report import write_report
    from apps.judging import shipped_judge
    from probe.model import load_pipeline

    run = _claim(Path(out))
    judge = judge or shipped_judge()
    model = load_pipeline(config.model) if pipe is None else pipe
    demo = _Demo(config, run, model, judge, Stages(run, say, 5 + 2 * len(config.dictionary_sites)))
    store = demo.collect()
    dictionaries = {site: demo.train(store, site) for site in config.dictionary_sites}
    bundles = {site: demo.features(store, site, made) for site, made in dictionaries.items()}
    baseline = demo.unlearn_baseline()
    records = [
        demo.unlearn("object", config.object, config.object_site, store, bundles),
        demo.unlearn("style", config.style, config.style_site, store, bundles),
    ]
    steered = demo.steer(store, bundles)
    rows, ratios = unlearning.result_rows(demo.grid, records, baseline)
    rows += [made["row"] for made in dictionaries.values()] + steered["rows"]
    rows += [{"measure": "seconds", "stage": name, "value": seconds} for name, seconds in demo.stages.seconds.items()]
    measured = Measurement(
        "demo.canvas",
        rows,
        ratios | steered["ratios"],
        device=str(model.device),
        config=config.to_dict() | {"config_hash": config.content_hash, "model_fingerprint": demo.model},
    ).write(run.results)
    write_report(run, config, measured, demo.grid, records, baseline, steered)
    say(f"[{demo.stages.elapsed}] report in {run.report}")
    return measured


def _claim(folder: Path) -> Run:
    """The run folder, marked as a demo's."""
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExists(f"demo: {str(folder)!r} exists and was not made by the demo; choose another --out.")
    write_json(folder / MARK, {"made_by": "denoscope demo"})
    return Run(folder)


class _Demo:
    """The stages; each method is one."""

    def __init__(self, config: DemoConfig, run: Run, pipe: DiffusionPipeline, judge: Judge, stages: Stages) -> None:
        from probe.model import fingerprint, generation_defaults

        self.config, self.run, self.pipe, self.judge, self.stages = config, run, pipe, judge, stages
        self.model = fingerprint(pipe)
        default = generation_defaults(pipe)
        self.sampling = unlearning.Sampling(
            config.steps or default.steps,
            default.guidance if config.guidance is None else config.guidance,
            config.batch_size,
        )
        self.grid = unlearning.scored_grid(config.n_seeds, objects=config.objects, styles=config.styles)
        self.scored = set(self.grid.prompts)
        within = {"object": config.objects, "style": config.styles}
        self.within = {name: values for name, values in within.items() if values}
        self.collected = balanced(config.n_prompts, seed=config.seed, exclude=self.scored, within=self.within)

    def collect(self) -> ActivationStore:
        """Record the sites."""
        from activations_store import ActivationStore
        from probe.capture import CapturePlan, collect

        config = self.config
        plan = CapturePlan.for_pipeline(
            self.pipe,
            config.sites,
            self.collected.prompts,
            first_seed=config.seed,
            labels=self.collected.labels,
            steps=self.sampling.steps,
            guidance=self.sampling.guidance,
            batch_size=config.batch_size,
        )
        key = {"plan": plan.content_hash(), "model": self.model["weights_hash"]}
        self._clear_unless(key)

        def work() -> dict[str, Any]:
            with bar("collect") as progress:
                store = collect(self.pipe, plan, self.run.store, progress=progress)
            return {"samples": store.n_committed_samples, "bytes": store.spec.n_bytes}

        title = f"collect {len(plan.prompts)} images, {len(plan.sites)} sites, {plan.steps} steps"
        self.stages.do("collect", title, key, work, outputs=[self.run.store / "store.json"])
        return ActivationStore.open(self.run.store)

    def _clear_unless(self, key: Mapping[str, Any]) -> None:
        """Make room when the collection's plan or model changed: a store never changes its plan."""
        import shutil

        path = self.run.folder / "collection.json"
        if self.run.store.exists() and (not path.is_file() or read_json(path).get("key_hash") != key_hash(key)):
            shutil.rmtree(self.run.store)
        write_json(path, {"key_hash": key_hash(key)})

    def train(self, store: ActivationStore, site: str) -> dict[str, Any]:
        """Train the dictionary of a site; returns its metrics row and hash."""
        import shutil

        from sae import TrainConfig, train

        config, name = self.config, site_name(site)
        settings = TrainConfig(
            site=site,
            expansion=config.expansion(site),
            k=config.k,
            rows=config.train_rows,
            batch_size=config.train_batch,
            lr=config.rate(store.site(site).spec.channels * config.expansion(site)),
            branches=config.train_branches,
            seed=config.seed,
        )
        folder = self.run.new("sae", name)
        key = {"store": store.hashes, "config": settings.to_json()}
        mark = folder / "demo_key.json"

        def work() -> dict[str, Any]:
            if folder.exists() and (not mark.is_file() or read_json(mark).get("key_hash") != key_hash(key)):
                shutil.rmtree(folder)
            write_json(mark, {"key_hash": key_hash(key)})
            with bar(f"train {name}", "step") as progress:
                result = train(store, settings, folder, progress=lambda at: progress(at.batch, at.n_batches))
            metrics = result.metrics
            row = {
                "measure": "dictionary",
                "site": site,
                "features": result.sae.d_sae,
                "k": config.k,
                "rows": result.rows,
            }
            row |= {m: metrics[m] for m in ("explained_variance", "l0", "dead_fraction", "dense_fraction")}
            row |= {"ev_first_step": metrics["ev_per_step"][0], "ev_last_step": metrics["ev_per_step"][-1]}
            return {"row": row, "weights_sha256": file_hash(folder / "sae_weights.safetensors")}

        title = f"train a dictionary at {name}"
        return self.stages.do(f"train-{name}", title, key, work, outputs=[folder / "cfg.json"])

    def features(self, store: ActivationStore, site: str, made: Mapping[str, Any]) -> dict[str, Any]:
        """Score concepts and build the bundle."""
        from apps.commands.features import bundle_of

        name = site_name(site)
        out = self.run.new("bundle", name)
        key = {"store": store.hashes, "weights": made["weights_sha256"], "n_examples": self.config.n_examples}

        def work() -> dict[str, Any]:
            bundle = bundle_of(self.run, name, store, n_examples=self.config.n_examples, force=True)
            best = {f: {c: bundle.find(f, c, 1)[0] for c in bundle.concepts[f]} for f in bundle.factors}
            return {"bundle": name, "best": best, "weights_sha256": made["weights_sha256"]}

        title = f"find the features of each concept at {name}"
        return self.stages.do(f"features-{name}", title, key, work, outputs=[out / "bundle.json"])

    def unlearn_baseline(self) -> dict[str, Any]:
        """Draw and judge the scored grid with the unedited model."""
        key = self._unlearn_key()

        def work() -> dict[str, Any]:
            return unlearning.judge_baseline(self.judge, self._before())

        return self.stages.do("baseline", f"draw {len(self.grid)} images with the unedited model", key, work)

    def unlearn(
        self, factor: str, label: str, site: str, store: ActivationStore, bundles: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Choose a setting on validation, unlearn, draw the scored grid, judge."""
        from probe.unlearning import Setting
        from sae import FeatureBundle, load_sae

        config, name = self.config, site_name(site)
        features = config.object_features if factor == "object" else config.style_features
        multipliers = config.object_multipliers if factor == "object" else config.style_multipliers
        base = Setting(branch=config.branch, relative=config.relative)
        settings = unlearning.setting_grid(base, features, multipliers)
        validation = unlearning.validation_grid(
            factor,
            label,
            n_target=config.validation_target,
            n_retain=config.validation_retain,
            exclude=self.scored | set(self.collected.prompts),
            within=self.within,
        )
        shown = self.shown()
        key = self._unlearn_key() | {
            "weights": bundles[site]["weights_sha256"],
            "store": store.hashes,
            "target": [factor, label],
            "settings": [asdict(setting) for setting in settings],
            "validation": unlearning.grid_record(validation),
            "shown": shown,
        }

        def work() -> dict[str, Any]:
            bundle = FeatureBundle.open(self.run.bundle(name))
            with bar(f"choose a setting for {label}") as progress:
                edit = unlearning.choose_edit(
                    unlearning.DEFAULT_METHOD,
                    factor,
                    label,
                    unlearning.saeuron_edits(
                        label,
                        settings,
                        sae=load_sae(self.run.sae(name)),
                        scores=bundle.scores(factor),
                        timesteps=[int(t) for t in store.spec.timesteps],
                    ),
                    pipe=self.pipe,
                    judge=self.judge,
                    sampling=self.sampling,
                    validation=validation,
                    progress=progress,
                )
            run_edit = partial(
                unlearning.run_edit, self.run, edit, self.pipe, self.judge, self.grid, self._before(), self.sampling
            )
            with bar(f"without {label}") as progress:
                return run_edit(shown=shown, progress=progress)

        outputs = [self.run.new("recipes", f"{factor}-{label}") / "recipe.json"]
        title = f"unlearn {factor} {label} at {name}, draw {len(self.grid)} images"
        return self.stages.do(f"unlearn-{factor}-{label}", title, key, work, outputs=outputs)

    def shown(self) -> list[int]:
        """Rows of the grid that the report shows, the same for both targets."""
        config, n = self.config, self.config.n_shown
        rows = unlearning.shown_rows(self.grid, "object", config.object, n)
        rows += unlearning.shown_rows(self.grid, "style", config.style, n)
        return sorted(set(rows))

    def steer(self, store: ActivationStore, bundles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Push the best feature of a concept up and down, and a random direction of the same length."""
        from apps.steering.push import feature_push
        from probe.model import generate
        from sae import FeatureBundle, load_sae

        config = self.config
        factor, concept = config.steer_factor, config.steer_concept
        site = max(bundles, key=lambda s: bundles[s]["best"][factor][concept][1])
        name, feature = site_name(site), int(bundles[site]["best"][factor][concept][0])
        others = tuple(v for v in self.collected.labels[factor] if v != concept)
        exclude = self.scored | set(self.collected.prompts)
        fixed = {key: tuple(v) for key, v in self.within.items() if key != factor} | {
            factor: tuple(dict.fromkeys(others))
        }
        prompts = balanced(config.steer_prompts, seed=2, exclude=exclude, within=fixed)
        seeds = range(STEER_SEED, STEER_SEED + len(prompts.prompts))
        key = {
            "model": self.model["weights_hash"],
            "weights": bundles[site]["weights_sha256"],
            "sampling": asdict(self.sampling),
            "prompts": prompts.prompts,
            "strengths": config.steer_strengths,
            "branch": config.steer_branch,
            "feature": feature,
        }
        folder = self.run.new("unlearn", "steer")

        def work() -> dict[str, Any]:
            stats = FeatureBundle.open(self.run.bundle(name)).stats(feature)
            sae, unit = load_sae(self.run.sae(name)), float(stats["p99"])
            push = feature_push(sae, [feature], [unit] if unit else None)
            strengths = sorted(config.steer_strengths)
            images: dict[tuple[bool, float], np.ndarray] = {}
            runs = [(control, s) for control in (False, True) for s in strengths if s]
            with bar(f"steer feature {feature}") as progress:
                total, done = (1 + len(runs)) * len(seeds), 0
                for control, strength in [(False, 0.0), *runs]:
                    edit = push.edit(strength, branch=config.steer_branch, control=feature if control else None)
                    images[control, strength] = generate(
                        self.pipe,
                        prompts.prompts,
                        seeds,
                        interventions=[edit] if strength else (),
                        **asdict(self.sampling),
                    )
                    done += len(seeds)
                    progress(done, total)
            images[True, 0.0] = images[False, 0.0]
            for (control, strength), batch in images.items():
                for i, image in enumerate(batch):
                    save_png(folder / steer_image(control, strengths.index(strength), i), image)
            rows = [
                _steer_row(self.judge, factor, concept, images[control, s], images[False, 0.0])
                | {"site": site, "feature": feature, "strength": s, "direction": "random" if control else "feature"}
                for control in (False, True)
                for s in strengths
            ]
            return {
                "rows": rows,
                "ratios": _steer_ratios(rows),
                "site": site,
                "name": name,
                "feature": feature,
                "unit": unit,
                "strengths": strengths,
                "prompts": prompts.prompts,
            }

        title = f"steer feature {feature} ({factor} {concept}) at {name}"
        return self.stages.do("steer", title, key, work, outputs=[folder / steer_image(False, 0, 0)])

    def _unlearn_key(self) -> dict[str, Any]:
        return {
            "model": self.model["weights_hash"],
            "grid": unlearning.grid_record(self.grid),
            "sampling": asdict(self.sampling),
        }

    def _before(self) -> np.ndarray:
        with bar("unedited") as progress:
            return unedited_images(self.run, self.pipe, self.grid, self.sampling, progress=progress)


def steer_image(control: bool, column: int, prompt: int) -> str:
    """File name of a steered image."""
    return f"{'random' if control else 'feature'}-{column:02d}-{prompt:03d}.png"


def _steer_row(judge: Judge, factor: str, concept: str, images: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """How probable the judge finds the concept, with an interval over prompts."""
    from probe.canvas import FACTORS
    from probe.unlearning.evaluate import pixel_change

    verdict = judge(images)
    probability = bootstrap_mean(verdict.probs[factor][:, FACTORS[factor].index(concept)])
    return {
        "measure": "steer",
        "steered": f"{factor} {concept}",
        "probability": probability.value,
        "probability_low": probability.low,
        "probability_high": probability.high,
        "artifacts": float(verdict.is_artifact.mean()),
        "change": float(pixel_change(before, images).mean()),
        "n": len(images),
    }


def _steer_ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Probability of the concept at the highest strength, unedited, and with a random direction of the same length; and
    the share of wrecked images that the push costs.
    """
    strongest = max(row["strength"] for row in rows)
    found = {(row["direction"], row["strength"]): row for row in rows}
    return {
        "steer_up": found["feature", strongest]["probability"],
        "steer_up_artifacts": found["feature", strongest]["artifacts"],
        "steer_unedited": found["feature", 0.0]["probability"],
        "steer_random": found["random", strongest]["probability"],
        "steer_random_artifacts": found["random", strongest]["artifacts"],
    }
