"""The demo's stages: collect, learn, find, draw unedited, unlearn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.demo.config import DemoConfig
from apps.measurement import read_json, write_json
from apps.progress import bar
from apps.prompts import balanced
from apps.runs import Run, site_name
from apps.stages import Stages, file_hash, key_hash
from apps.unlearning import edits as unlearning
from apps.unlearning import prompt_grids
from apps.unlearning.unedited import unedited_images

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from activations_store import ActivationStore
    from probe.canvas import Judge


class Demo:
    """What a demo works with, and its stages but the last; each method is one."""

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
        self.grid = prompt_grids.scored_grid(config.n_seeds, objects=config.objects, styles=config.styles)
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
        validation = prompt_grids.validation_grid(
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
            "validation": prompt_grids.grid_record(validation),
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
        rows = prompt_grids.shown_rows(self.grid, "object", config.object, n)
        rows += prompt_grids.shown_rows(self.grid, "style", config.style, n)
        return sorted(set(rows))

    def _unlearn_key(self) -> dict[str, Any]:
        return {
            "model": self.model["weights_hash"],
            "grid": prompt_grids.grid_record(self.grid),
            "sampling": asdict(self.sampling),
        }

    def _before(self) -> np.ndarray:
        with bar("unedited") as progress:
            return unedited_images(self.run, self.pipe, self.grid, self.sampling, progress=progress)
