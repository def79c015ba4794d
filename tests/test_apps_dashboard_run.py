"""A run whose truth is planted, for the tests of the dashboard, and the proof that its bundle shows that truth.

Pictures are canvas renders. Every factor value has one direction: an object's and a colour's are active
under the object's mask, a style's everywhere, a background's outside the mask; each factor has its own
time. The dictionary has these directions as its first features, so feature i must fire where and when value
i is shown. The others pick up noise or are dead.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

N_SAMPLES, N_STEPS, SIDE, D_IN, D_SAE = 96, 6, 8, 48, 56
SITE = "unet.mid_block:out"
HOSTILE = "a <script>alert(1)</script> **bold** [link](https://example.com) $x^2$ :red[star]"
PEAKS = {"background": 0.5, "colour": 1.5, "style": 3.0, "object": 4.0}  # step at which a factor is strongest


def planted_values() -> list[tuple[str, str]]:
    """(factor, value) of feature 0, 1, 2, ..."""
    from probe.canvas.world import FACTORS

    return [(factor, value) for factor, values in FACTORS.items() for value in values]


def planted_run(folder: Path, *, stages: int = 4) -> Path:
    """Writes a run: 1 = store and images, 2 = and the dictionary, 3 = and the bundle, 4 = and the results."""
    import pyarrow as pa
    from PIL import Image

    from activations_store import ActivationStore, SiteSpec, StoreSpec, StoreWriter
    from probe.canvas.render import render
    from probe.canvas.world import FACTORS, caption, sample_scene

    rng = np.random.default_rng(0)
    values = planted_values()
    number = {value: i for i, value in enumerate(values)}
    directions = np.linalg.qr(rng.normal(size=(D_IN, D_IN)))[0][: len(values)]
    images = folder / "store" / "images"
    spec = StoreSpec(
        sites=(SiteSpec(SITE, SIDE * SIDE, D_IN, (SIDE, SIDE)),),
        n_samples=N_SAMPLES,
        timesteps=tuple(np.linspace(999, 165, N_STEPS).round().astype(int).tolist()),
        log_snr=tuple(np.linspace(-9, 3, N_STEPS).round(2).tolist()),
        branches=("cond",),
        samples_per_shard=N_SAMPLES,
    )
    scenes = [sample_scene(rng, split="train") for _ in range(N_SAMPLES)]
    labels = [{factor: getattr(scene, factor) for factor in FACTORS} for scene in scenes]
    prompts = [caption(scene) for scene in scenes]
    prompts[:40:4] = [HOSTILE] * 10  # text that a careless page would run or format
    rows = {"sample": range(N_SAMPLES), "prompt": prompts, "seed": range(100, 100 + N_SAMPLES)}
    table = pa.table({k: list(v) for k, v in rows.items()} | {f"label_{f}": [x[f] for x in labels] for f in FACTORS})
    fingerprint = {
        "model_class": "StableDiffusionPipeline",
        "name": "canvas",
        "weights_hash": "3f9a" * 16,
        "scheduler": "DDIMScheduler",
        "scheduler_config_hash": "ab" * 32,
        "dtype": "float32",
        "versions": {"torch": "2.13.0"},
    }
    writer = StoreWriter.create(
        folder / "store",
        spec,
        table,
        fingerprint=fingerprint,
        plan={"model": "canvas", "guidance": 2.0, "steps": N_STEPS},
    )
    images.mkdir(exist_ok=True)
    x = np.zeros((N_SAMPLES, N_STEPS, 1, SIDE * SIDE, D_IN), np.float32)
    for sample, (scene, label) in enumerate(zip(scenes, labels, strict=True)):
        drawn = render(scene, sample)
        Image.fromarray(drawn.image).save(images / f"{sample:06d}.png")
        mask = np.asarray(drawn.mask, np.float32).reshape(SIDE, 64 // SIDE, SIDE, 64 // SIDE).mean((1, 3)).ravel()
        where = {"object": mask, "colour": mask, "style": np.ones_like(mask), "background": 1 - mask}
        for factor, value in label.items():
            when = 6 * np.exp(-0.5 * ((np.arange(N_STEPS) - PEAKS[factor]) / 1.4) ** 2)
            x[sample, :, 0] += (when[:, None] * where[factor])[..., None] * directions[number[factor, value]]
    x += rng.normal(scale=0.15, size=x.shape)
    with writer:
        writer.write_shard(0, {SITE: x})
    if stages < 2:
        return folder
    _add_dictionary(folder, directions)
    if stages >= 3:
        from sae import build_bundle, load_sae

        store, sae = ActivationStore.open(folder / "store"), load_sae(folder / "sae" / "mid_block")
        metrics = json.loads((folder / "sae" / "mid_block" / "metrics.json").read_text())
        build_bundle(sae, store, images, folder / "bundle" / "mid_block", n_examples=9, metrics=metrics)
    if stages >= 4:
        (folder / "results.json").write_text(json.dumps(planted_results()))
    return folder


def _add_dictionary(folder: Path, directions: np.ndarray) -> None:
    import torch

    from activations_store import ActivationStore
    from sae import SAEConfig, TopKSAE, evaluate, save_sae

    sae = TopKSAE(SAEConfig(D_IN, D_SAE, k=5, site=SITE), seed=1, metadata={"site": SITE})
    with torch.no_grad():
        planted = torch.from_numpy(directions).float()
        sae.W_dec[: len(planted)] = planted
        sae.W_enc[:, : len(planted)] = planted.T
        sae.b_enc[len(planted) :] = -1.0
        sae.b_enc[-4:] = -100.0  # dead
    target = save_sae(sae, folder / "sae" / "mid_block")
    metrics = evaluate(sae, ActivationStore.open(folder / "store"))
    (target / "metrics.json").write_text(json.dumps(metrics))


def planted_results() -> dict[str, object]:
    """A file of measurements with two targets, as ``denoscope demo`` writes it."""
    rows = []
    for factor, target, ua in (("object", "star", 0.97), ("style", "mosaic", 0.94)):
        for edit, scores in (
            (True, {"ua": ua, "ira": 0.955, "cra": 0.981, "artifacts": 0.03, "change_retain": 0.012}),
            (False, {"ua": 0.02, "ira": 0.98, "cra": 0.99, "artifacts": 0.01, "change_retain": 0.0}),
        ):
            row: dict[str, object] = {"factor": factor, "target": target, "n_images": 480, "edit": edit}
            for name, value in scores.items():
                row |= {name: value, f"{name}_low": max(0.0, value - 0.03), f"{name}_high": min(1.0, value + 0.02)}
            rows.append(row)
    keys = {"name": "demo", "machine": {"cores": 2}, "device": "cpu", "versions": {}, "git": None}
    return keys | {"rows": rows, "ratios": {"object_ua": 0.97, "style_ua": 0.94}}


def test_bundle_shows_what_was_planted(tmp_path: Path) -> None:
    from sae import FeatureBundle

    run = planted_run(tmp_path / "run", stages=3)
    bundle = FeatureBundle.open(run / "bundle" / "mid_block")
    values = planted_values()
    for feature in (0, 15, 23, 31):
        factor, value = values[feature]
        row = bundle.stats(feature)
        assert row[f"best_{factor}"] == value
        assert row[f"auc_{factor}"] == pytest.approx(1.0)
        assert all(example.labels[factor] == value for example in bundle.examples(feature)[:3])
    assert bundle.stats(D_SAE - 1)["dead"]
