"""The whole demo at miniature size, on an untrained model: the plumbing, not the quality."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from probe.canvas import Judge

RATIOS = {f"{factor}_{name}" for factor in ("object", "style") for name in ("ua", "ira", "cra", "artifacts")}


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    """Random weights behind canvas's own tokenizer: 64 x 64 images, mid-block of 4 x 4 cells and 16 channels."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from probe.canvas.train.autoencoder import new_autoencoder
    from probe.canvas.train.denoiser import new_scheduler
    from probe.canvas.train.text import new_text_encoder, new_tokenizer

    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    text_encoder = new_text_encoder(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    made = StableDiffusionPipeline(
        vae=new_autoencoder().eval(),  # type: ignore[arg-type]
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=new_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    for module in (made.unet, made.vae, made.text_encoder):
        module.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def judge() -> Judge:
    """An untrained judge."""
    import torch

    from probe.canvas import FACTORS, Judge
    from probe.canvas.judge_net import JudgeNet

    torch.manual_seed(0)
    return Judge(JudgeNet(), dict.fromkeys((*FACTORS, "artifact"), 1.0), 0.5)


@pytest.fixture(scope="module")
def demo(pipe: Any, judge: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """(run folder, measurement, lines) of one miniature demo."""
    from apps.demo.config import DemoConfig
    from apps.demo.run import run_demo

    folder, lines = tmp_path_factory.mktemp("runs") / "demo", []
    measured = run_demo(DemoConfig.miniature(), folder, say=lines.append, pipe=pipe, judge=judge)
    return folder, measured, lines


def test_leaves_everything_that_people_and_the_dashboard_read(demo: Any) -> None:
    from apps.measurement import read_measurement
    from apps.runs import Run
    from sae import FeatureBundle

    folder, measured, lines = demo
    run = Run.open(folder)
    assert list(run.saes()) == list(run.bundles()) == ["mid_block"]
    assert sorted(run.recipes()) == ["object-star", "style-mosaic"]
    assert FeatureBundle.open(run.bundle()).examples(0) is not None
    assert read_measurement(run.results) == measured
    assert set(measured["ratios"]) >= RATIOS
    assert [row["target"] for row in measured["rows"] if row.get("edit")] == ["star", "mosaic"]
    stages = [line for line in lines if re.match(r"\[\d+:\d\d\] \d/7 ", line)]
    assert len(stages) == 7 and "done before" not in "".join(lines)


def test_prompts_that_are_scored_were_used_for_nothing_else(demo: Any) -> None:
    folder, _, _ = demo
    from activations_store import ActivationStore

    samples = ActivationStore.open(folder / "store").samples
    stage = json.loads((folder / "stages" / "unlearn-object-star.json").read_text())
    grid, validation = stage["key"]["grid"], stage["key"]["validation"]
    scored, seeds = set(grid["prompts"]), set(grid["seeds"])
    assert len(stage["result"]["tried"]) == 2
    sets = [scored, set(samples.column("prompt").to_pylist()), set(validation["prompts"])]
    seed_sets = [seeds, set(samples.column("seed").to_pylist()), set(validation["seeds"])]
    for group in (sets, seed_sets):
        assert all(a.isdisjoint(b) for i, a in enumerate(group) for b in group[:i])


def test_the_report_is_self_contained(demo: Any) -> None:
    folder, measured, _ = demo
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in html and "https:" not in html and "<script" not in html and "href=" not in html
    sources = re.findall(r'src="([^"]{0,30})', html)
    assert len(sources) > 20 and all(source.startswith("data:image/") for source in sources)
    assert html.count("<img ") == len(re.findall(r'<img class="\w+" alt="[^"]+"', html))
    assert measured["config"]["config_hash"][:16] in html
    assert str(folder) not in html


def test_a_second_run_repeats_nothing(demo: Any, pipe: Any, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.demo.config import DemoConfig
    from apps.demo.run import run_demo

    folder, measured, _ = demo
    monkeypatch.setattr(sys.modules["probe.model.generate"], "run_batch", _refuse)
    lines: list[str] = []
    again = run_demo(DemoConfig.miniature(), folder, say=lines.append, pipe=pipe, judge=judge)
    assert sum(line.endswith("done before") for line in lines) == 7
    assert again == measured


def test_a_lost_or_changed_stage_is_repeated_with_the_same_result(
    demo: Any, pipe: Any, judge: Any, tmp_path: Path
) -> None:
    from apps.demo.config import DemoConfig
    from apps.demo.run import run_demo

    folder, measured, _ = demo
    copy = tmp_path / "demo"
    shutil.copytree(folder, copy)
    (copy / "stages" / "unlearn-style-mosaic.json").unlink()
    shutil.rmtree(copy / "bundle")
    lines: list[str] = []
    again = run_demo(DemoConfig.miniature(), copy, say=lines.append, pipe=pipe, judge=judge)
    assert sum(line.endswith("done before") for line in lines) == 5
    assert again["ratios"] == measured["ratios"]
    lines.clear()
    run_demo(replace(DemoConfig.miniature(), object="heart"), copy, say=lines.append, pipe=pipe, judge=judge)
    assert [line for line in lines if "object heart" in line and "done before" not in line]
    assert sum(line.endswith("done before") for line in lines) >= 4


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    from apps.demo.config import DemoConfig
    from apps.demo.run import run_demo
    from apps.errors import OutputExists

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match="was not made by the demo"):
        run_demo(DemoConfig.miniature(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("an image was generated again")
