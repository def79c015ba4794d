"""probe.capture: site names, prompt files, plans, collection against a hand-written hook, kill and resume."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline
from PIL import Image

from activations_store import ActivationStore
from activations_store.errors import (
    FingerprintMismatch,
    NonFiniteActivations,
    PlanMismatch,
    StoreExists,
)
from activations_store.storage import fileio
from probe.capture import (
    CapturePlan,
    Recorder,
    Site,
    collect,
    estimate,
    read_prompts,
    resolve_sites,
    store_spec,
)
from probe.capture.size import sample_table
from probe.errors import (
    EmptyPrompts,
    InvalidPlan,
    InvalidRequest,
    ModelMismatch,
    PromptFileError,
    PromptFileNotFound,
    UnknownSite,
    UnsupportedSite,
)
from probe.model import generate, load_pipeline, schedule

PROMPTS = ["a red star", "a blue moon", "the green cup", "a red moon", "a blue cup"]
SITES = ["mid_block", "up_blocks.0.attentions.0:delta", "down_blocks.1.attentions.0:in"]


def make_plan(pipe, n=5, **changes) -> CapturePlan:
    given = {
        "seeds": range(10, 10 + n),
        "labels": {"object": [p.split()[-1] for p in PROMPTS[:n]]},
        "steps": 3,
        "guidance": 2.0,
        "batch_size": 2,
    } | changes
    return CapturePlan.for_pipeline(pipe, given.pop("sites", SITES), PROMPTS[:n], **given)


def tree_hashes(folder: Path) -> dict[str, str]:
    """Every file of a store and its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Sites


def test_site_names_are_completed(tiny_pipe):
    assert resolve_sites(tiny_pipe, "mid_block") == [Site("unet.mid_block", "out")]
    assert str(Site.parse("unet.mid_block")) == "unet.mid_block:out"
    found = resolve_sites(tiny_pipe, ["unet.mid_block:in", "up_blocks.*", "mid_block:in"])
    assert [str(s) for s in found] == ["unet.mid_block:in", "unet.up_blocks.0:out", "unet.up_blocks.1:out"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("midblock", "no module 'unet.midblock'. Near matches: unet.mid_block"),
        ("up_blocks.7", "Near matches: unet.up_blocks"),
        ("mid_block:sideways", "no port 'sideways'; expected one of in, out, delta"),
        ("nothing.*.here", "no module 'unet.nothing.*.here'"),
    ],
)
def test_unknown_sites_list_near_matches(tiny_pipe, name, message):
    with pytest.raises(UnknownSite) as caught:
        resolve_sites(tiny_pipe, name)
    assert message in str(caught.value)
    assert isinstance(caught.value, KeyError)


def test_sites_outside_the_denoiser_are_refused(tiny_pipe):
    with pytest.raises(InvalidRequest, match="outside the denoiser"):
        resolve_sites(tiny_pipe, "vae.decoder")
    with pytest.raises(InvalidRequest, match="no site was given"):
        resolve_sites(tiny_pipe, [])


# Prompt files


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("# remark\na red star\n\n a blue moon \n")
    (tmp_path / "p.csv").write_text('prompt,seed,label_object,style\n"a red, star",7,star,flat\na moon,8,moon,neon\n')
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red star", "object": "star"}\n\n{"prompt": "x", "object": "moon"}\n'
    )
    assert read_prompts(tmp_path / "p.txt").prompts == ("a red star", "a blue moon")
    table = read_prompts(tmp_path / "p.csv")
    assert table.prompts[0] == "a red, star" and table.seeds == (7, 8)
    assert table.labels == {"object": ("star", "moon"), "style": ("flat", "neon")}
    assert read_prompts(tmp_path / "p.jsonl").labels == {"object": ("star", "moon")}
    assert read_prompts(tmp_path / "p.jsonl").seeds is None


def test_line_breaks_and_nulls_in_prompt_files_stay_what_they_are(tmp_path):
    """Quoted fields may hold line breaks, text may hold U+2028 and U+0085, and null is no label."""
    (tmp_path / "p.csv").write_text(
        'prompt,style\r\n"a red\nstar",flat\r\na\u2028moon,\r\n', encoding="utf-8", newline=""
    )
    table = read_prompts(tmp_path / "p.csv")
    assert table.prompts == ("a red\nstar", "a\u2028moon") and table.labels == {"style": ("flat", "")}
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b", "x": null}\r\n', encoding="utf-8", newline="")
    assert read_prompts(tmp_path / "p.jsonl").prompts == ("a\u2028b",)
    assert read_prompts(tmp_path / "p.jsonl").labels == {"x": ("",)}
    (tmp_path / "p.txt").write_text("a\x85b\r\n c\n", encoding="utf-8", newline="")
    assert read_prompts(tmp_path / "p.txt").prompts == ("a\x85b", "c")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", b"\n# only a remark\n", EmptyPrompts, "a.txt holds no prompts"),
        ("a.csv", b"prompt,seed\n", EmptyPrompts, "a.csv holds no prompts"),
        ("a.csv", b"text,seed\nx,1\n", PromptFileError, "no column 'prompt'; found text, seed"),
        ("a.csv", b"prompt,seed\nx,-1\n", PromptFileError, "line 2: seed '-1' is not a whole number"),
        ("a.csv", b"prompt,seed\nx,1,2\n", PromptFileError, "line 2 does not have the 2 fields"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"}\n', PromptFileError, "line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "y", "z": 1}\n', PromptFileError, "line 2 has the fields prompt, z"),
        ("a.jsonl", b'{"prompt": 3}\n', PromptFileError, "line 1: the prompt is 3"),
        ("a.txt", b"\xff\xfe\x00", PromptFileError, "not UTF-8"),
        ("a.csv", b"prompt,label_x,x\ny,1,2\n", PromptFileError, "gives a label twice: label_x, x"),
        ("a.docx", b"x", PromptFileError, "expected .txt, .csv, .jsonl"),
    ],
)
def test_bad_prompt_files(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error) as caught:
        read_prompts(tmp_path / name)
    assert message in str(caught.value)


def test_missing_prompt_file(tmp_path):
    with pytest.raises(PromptFileNotFound, match="no file"):
        read_prompts(tmp_path / "none.txt")


# Plans


def test_plan_round_trip_and_hash(tiny_pipe):
    plan = make_plan(tiny_pipe)
    assert CapturePlan.from_json(plan.to_json()) == plan
    assert CapturePlan.from_json(plan.to_json()).content_hash() == plan.content_hash()
    assert make_plan(tiny_pipe, steps=4).content_hash() != plan.content_hash()
    assert plan.sites[0] == "unet.mid_block:out" and plan.model == "in-memory"
    assert make_plan(tiny_pipe, guidance=1.0).branches == ("cond",)
    assert [list(b) for b in plan.batches(range(5))] == [[0, 1], [2, 3], [4]]
    with pytest.raises(InvalidPlan, match="found the fields"):
        CapturePlan.from_json('{"model": "x"}')
    with pytest.raises(InvalidPlan, match="not JSON"):
        CapturePlan.from_json("{")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": ()}, EmptyPrompts, "no prompts"),
        ({"seeds": (1,)}, InvalidPlan, "2 prompts but 1 seeds"),
        ({"seeds": (1, -1)}, InvalidPlan, "seed -1"),
        ({"labels": {"object": ("star",)}}, InvalidPlan, "label 'object' has 1 values"),
        ({"labels": {"a/b": ("x", "y")}}, InvalidPlan, "not a plain name"),
        ({"steps": 0}, InvalidPlan, "steps must be an integer of at least 1, got 0"),
        ({"dtype": "int4"}, InvalidPlan, "dtype 'int4'"),
        ({"branches": ("both",)}, InvalidPlan, "expected one or both of uncond, cond"),
        ({"guidance": float("nan")}, InvalidPlan, "guidance"),
        ({"sites": ()}, InvalidPlan, "no sites"),
    ],
)
def test_bad_plans(changes, error, message):
    given = {"model": "tiny", "sites": ("unet.mid_block:out",), "prompts": ("a", "b"), "seeds": (0, 1)}
    with pytest.raises(error) as caught:
        CapturePlan(**(given | changes))
    assert message in str(caught.value)


def test_size_is_known_before_the_run(tiny_pipe):
    plan = make_plan(tiny_pipe)
    spec = store_spec(tiny_pipe, plan)
    assert [(s.tokens, s.channels, s.grid) for s in spec.sites] == [
        (16, 16, (4, 4)),
        (16, 16, (4, 4)),
        (16, 16, (4, 4)),
    ]
    assert spec.timesteps == schedule(tiny_pipe, 3)[0]
    found = estimate(tiny_pipe, plan)
    assert found.bytes_by_site["unet.mid_block:out"] >= 5 * 3 * 2 * 16 * 16 * 2
    assert found.seconds > 0 and found.n_samples == 5
    assert "5 samples x 3 steps x 2 branches" in str(found) and "unet.mid_block:out" in str(found)


def test_branches_must_be_computed(tiny_pipe):
    with pytest.raises(InvalidPlan, match="branch uncond is not computed at guidance 1"):
        store_spec(tiny_pipe, make_plan(tiny_pipe, guidance=1.0, branches=("uncond", "cond")))


def test_sites_that_cannot_be_recorded(tiny_pipe):
    with pytest.raises(UnsupportedSite, match="differ in shape"):
        store_spec(tiny_pipe, make_plan(tiny_pipe, sites=["conv_in:delta"]))
    with pytest.raises(UnsupportedSite, match="more than once"):
        store_spec(tiny_pipe, make_plan(tiny_pipe, sites=["mid_block.resnets.0.nonlinearity"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_pipe.unet.modules())


# Collection


def test_capture_equals_a_hand_written_hook(tiny_pipe, tmp_path):
    plan = make_plan(tiny_pipe, dtype="float32")
    store = collect(tiny_pipe, plan, tmp_path / "s")
    assert store.complete and store.spec.branches == ("uncond", "cond")

    seen: list[torch.Tensor] = []
    block = tiny_pipe.unet.up_blocks[0].attentions[0]
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output[0] - args[0]))
    try:
        tiny_pipe.set_progress_bar_config(disable=True)
        images = tiny_pipe(
            PROMPTS[2:4],
            num_inference_steps=3,
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(s) for s in (12, 13)],
            output_type="np",
        ).images
    finally:
        handle.remove()
    by_hand = torch.stack(seen)  # (steps, 2 branches x 2 samples, channels, height, width)
    expected = by_hand.unflatten(1, (2, 2)).permute(2, 0, 1, 4, 5, 3).flatten(3, 4).numpy()
    found = store.site("unet.up_blocks.0.attentions.0:delta").read(sample=slice(2, 4))
    np.testing.assert_array_equal(found, expected)
    saved = np.asarray(Image.open(tmp_path / "s" / "images" / "000003.png"))
    np.testing.assert_array_equal(saved, (images[1] * 255).round().astype(np.uint8))


def test_what_the_store_says_about_its_samples(tiny_pipe, tmp_path):
    plan = make_plan(tiny_pipe)
    store = collect(tiny_pipe, plan, tmp_path / "s", save_images=False)
    assert store.samples.column("prompt").to_pylist() == PROMPTS
    assert store.samples.column("seed").to_pylist() == list(range(10, 15))
    assert list(store.labels("object")) == ["star", "moon", "cup", "moon", "cup"]
    assert store.fingerprint["model_class"] == "StableDiffusionPipeline"
    assert store.plan["plan_hash"] == plan.content_hash() and store.plan["guidance"] == 2.0
    assert not (tmp_path / "s" / "images").exists()
    assert store.verify() == []


def test_only_the_conditional_branch(tiny_pipe, tmp_path):
    both = collect(tiny_pipe, make_plan(tiny_pipe, n=2), tmp_path / "both")
    cond = collect(tiny_pipe, make_plan(tiny_pipe, n=2, branches=("cond",)), tmp_path / "cond")
    site = "unet.mid_block:out"
    np.testing.assert_array_equal(cond.site(site).read()[:, :, 0], both.site(site).read(branch="cond")[:, :, 0])
    assert (both.site(site).read(branch="uncond") != both.site(site).read(branch="cond")).any()


def test_existing_output(tiny_pipe, tmp_path):
    plan = make_plan(tiny_pipe, n=2)
    calls: list[int] = []
    collect(tiny_pipe, plan, tmp_path / "s")
    before = tree_hashes(tmp_path / "s")
    collect(tiny_pipe, plan, tmp_path / "s", progress=lambda done, total: calls.append(done))  # complete: nothing to do
    assert calls == [] and tree_hashes(tmp_path / "s") == before
    with pytest.raises(StoreExists, match="already"):
        collect(tiny_pipe, plan, tmp_path / "s", resume=False)
    with pytest.raises(PlanMismatch, match="samples_hash"):
        collect(tiny_pipe, make_plan(tiny_pipe, n=2, seeds=[1, 2]), tmp_path / "s")
    other = build_tiny_pipeline()
    other.unet.conv_in.weight.mul_(1.01)
    with pytest.raises(FingerprintMismatch, match="weights_hash"):
        collect(other, plan, tmp_path / "s")
    assert tree_hashes(tmp_path / "s") == before


def test_plan_of_another_model(tiny_pipe, tmp_path):
    plan = CapturePlan(model="canvas", sites=("unet.mid_block:out",), prompts=("a",), seeds=(0,))
    with pytest.raises(ModelMismatch, match="plan is for model 'canvas', but the pipeline is StableDiffusionPipeline"):
        collect(tiny_pipe, plan, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_activations_that_overflow_are_refused(tmp_path):
    pipe = build_tiny_pipeline()
    pipe.unet.mid_block.resnets[1].conv2.weight.mul_(1e9)
    with pytest.raises(NonFiniteActivations, match="mid_block"):
        collect(pipe, make_plan(pipe, n=2, sites=["mid_block"]), tmp_path / "s")


def test_recorder_is_removed_after_an_exception(tiny_pipe):
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Recorder(tiny_pipe, resolve_sites(tiny_pipe, "mid_block"), fail):
        generate(tiny_pipe, ["a"], [0], steps=2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_pipe.unet.modules())


_CHILD = """
import sys, time
from pathlib import Path
from probe.capture import CapturePlan, collect
from probe.model import load_pipeline

folder, plan, out = map(Path, sys.argv[1:])

def progress(done, total):
    if done >= 48:  # deep in the third shard: wait to be killed
        (out / "ready").touch()
        time.sleep(60)

collect(load_pipeline(folder), CapturePlan.from_json(plan.read_text()), out, progress=progress)
"""


@pytest.mark.slow
def test_killed_collection_resumes_to_the_same_bytes(tiny_folder, tmp_path):
    pipe = load_pipeline(tiny_folder)
    prompts = [PROMPTS[i % 5] for i in range(70)]
    plan = CapturePlan.for_pipeline(pipe, "mid_block", prompts, steps=1, batch_size=8, max_samples_per_shard=16)
    (tmp_path / "plan.json").write_text(plan.to_json())
    whole = collect(pipe, plan, tmp_path / "whole")
    assert whole.spec.n_shards == 5

    out = tmp_path / "killed"
    root = Path(__file__).parent.parent
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tiny_folder), str(tmp_path / "plan.json"), str(out)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    try:
        while not (out / "ready").exists():
            assert child.poll() is None, child.communicate(timeout=10)[1].decode()
            assert time.monotonic() < deadline, "the collection did not get to the third shard"
            time.sleep(0.02)
    finally:
        child.kill()
        child.communicate(timeout=60)
    (out / "ready").unlink()
    (out / "images" / f".000040.png.{fileio.HOST_TAG}-1-0.tmp").write_bytes(b"half an image")

    killed = ActivationStore.open(out)
    n_committed = len(killed.committed)
    assert not killed.complete and 1 <= n_committed <= 3
    calls: list[int] = []
    resumed = collect(pipe, plan, out, progress=lambda done, total: calls.append(done))
    assert resumed.complete and resumed.verify() == []
    assert calls[0] == 16 * n_committed + 8  # committed samples are not generated again
    assert tree_hashes(out) == tree_hashes(tmp_path / "whole")


def test_sample_table_has_the_stores_columns(tiny_pipe):
    table = sample_table(make_plan(tiny_pipe))
    assert table.column_names == ["sample", "prompt", "seed", "label_object"]
