"""The demo's steering: a concept's best feature pushed up and down, beside a random direction of the same length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.demo.stages import Demo
from apps.images import save_png
from apps.measurement import bootstrap_mean
from apps.progress import bar
from apps.prompts import balanced
from apps.runs import site_name

if TYPE_CHECKING:
    from probe.canvas import Judge

STEER_SEED = 3_000_000


def steer(demo: Demo, bundles: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Push the best feature of a concept up and down, and a random direction of the same length."""
    from apps.steering.push import feature_push
    from probe.model import generate
    from sae import FeatureBundle, load_sae

    config = demo.config
    factor, concept = config.steer_factor, config.steer_concept
    site = max(bundles, key=lambda s: bundles[s]["best"][factor][concept][1])
    name, feature = site_name(site), int(bundles[site]["best"][factor][concept][0])
    others = tuple(v for v in demo.collected.labels[factor] if v != concept)
    exclude = demo.scored | set(demo.collected.prompts)
    fixed = {key: tuple(v) for key, v in demo.within.items() if key != factor} | {factor: tuple(dict.fromkeys(others))}
    prompts = balanced(config.steer_prompts, seed=2, exclude=exclude, within=fixed)
    seeds = range(STEER_SEED, STEER_SEED + len(prompts.prompts))
    key = {
        "model": demo.model["weights_hash"],
        "weights": bundles[site]["weights_sha256"],
        "sampling": asdict(demo.sampling),
        "prompts": prompts.prompts,
        "strengths": config.steer_strengths,
        "branch": config.steer_branch,
        "feature": feature,
    }
    folder = demo.run.new("unlearn", "steer")

    def work() -> dict[str, Any]:
        stats = FeatureBundle.open(demo.run.bundle(name)).stats(feature)
        sae, unit = load_sae(demo.run.sae(name)), float(stats["p99"])
        push = feature_push(sae, [feature], [unit] if unit else None)
        strengths = sorted(config.steer_strengths)
        images: dict[tuple[bool, float], np.ndarray] = {}
        runs = [(control, s) for control in (False, True) for s in strengths if s]
        with bar(f"steer feature {feature}") as progress:
            total, done = (1 + len(runs)) * len(seeds), 0
            for control, strength in [(False, 0.0), *runs]:
                edit = push.edit(strength, branch=config.steer_branch, control=feature if control else None)
                images[control, strength] = generate(
                    demo.pipe,
                    prompts.prompts,
                    seeds,
                    interventions=[edit] if strength else (),
                    **asdict(demo.sampling),
                )
                done += len(seeds)
                progress(done, total)
        images[True, 0.0] = images[False, 0.0]
        for (control, strength), batch in images.items():
            for i, image in enumerate(batch):
                save_png(folder / steer_image(control, strengths.index(strength), i), image)
        rows = [
            _steer_row(demo.judge, factor, concept, images[control, s], images[False, 0.0])
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
    return demo.stages.do("steer", title, key, work, outputs=[folder / steer_image(False, 0, 0)])


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
