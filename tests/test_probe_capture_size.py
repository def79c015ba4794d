"""probe.capture: the size of a collection before it runs, what is kept of it, and values that are not finite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline

from activations_store.errors import NonFiniteActivations, PlanMismatch
from probe.capture import CapturePlan, TokenLayout, collect, estimate, memory, nonfinite, store_spec
from probe.capture import size as size_module
from probe.errors import InvalidPlan, NotAMap, NotEnoughMemory, NotEnoughSpace
from probe.model import schedule

MID, DEEP = "unet.mid_block:out", "unet.up_blocks.0.attentions.0:delta"
Usage = namedtuple("Usage", "total used free")


def make_plan(pipe, n=5, sites=(MID, DEEP), **changes) -> CapturePlan:
    given = {"steps": 3, "guidance": 2.0, "batch_size": 2, "labels": {"object": ["star"] * n}} | changes
    return CapturePlan.for_pipeline(pipe, sites, [f"a red star {i}" for i in range(n)], first_seed=7, **given)


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# Size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n": 40, "max_samples_per_shard": 8, "batch_size": 8},
        {"dtype": "float32", "branches": ("cond",), "images": False},
        {"record_steps": (0, 2), "tokens": 5},
        {"pool": "mean", "n": 24, "batch_size": 8},
        {"dtype": "int8", "n": 16},
    ],
    ids=["plain", "many shards", "float32", "steps and tokens", "pooled", "int8"],
)
def test_disk_is_predicted_within_a_tenth(tiny_pipe, tmp_path, changes):
    plan = make_plan(tiny_pipe, **changes)
    found = estimate(tiny_pipe, plan, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    store = collect(tiny_pipe, plan, tmp_path / "s")
    real = bytes_on_disk(tmp_path / "s")
    assert found.total_bytes == pytest.approx(real, rel=0.1)
    files = [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
    assert abs(found.n_files - len(files)) <= 3
    shards = {str(site): 0 for site in store.sites}
    for name in shards:
        folder = tmp_path / "s" / "arrays" / store.spec.site(name).dir_name
        shards[name] = bytes_on_disk(folder) - (folder / "zarr.json").stat().st_size
    assert dict(found.bytes_by_site) == shards
    assert (found.disk.images == 0) == (not plan.images)


def test_an_estimate_reads_as_a_table(tiny_pipe):
    text = str(estimate(tiny_pipe, make_plan(tiny_pipe)))
    assert "5 samples x 3 steps x 2 branches" in text and "images" in text and MID in text
    assert "memory at most" in text and "cheaper, each alone:" in text and "pool='mean'" in text


def test_cheaper_settings_have_the_sizes_they_would_have(tiny_pipe):
    plan = make_plan(tiny_pipe, n=64, steps=4, dtype="float32", images=False)
    found = {c.setting: c.total_bytes for c in estimate(tiny_pipe, plan).cheaper}
    now = estimate(tiny_pipe, plan).total_bytes
    assert set(found) == {"2 of the 4 steps", "branches=('cond',)", "dtype='float16'", "dtype='int8'", "pool='mean'"}
    for setting, changes in [
        ("dtype='float16'", {"dtype": "float16"}),
        ("dtype='int8'", {"dtype": "int8"}),
        ("pool='mean'", {"pool": "mean"}),
        ("branches=('cond',)", {"branches": ("cond",)}),
        ("2 of the 4 steps", {"record_steps": (0, 2)}),
    ]:
        plan = make_plan(tiny_pipe, n=64, **({"steps": 4, "dtype": "float32", "images": False} | changes))
        assert found[setting] == pytest.approx(estimate(tiny_pipe, plan).total_bytes, rel=0.02)
        assert found[setting] < now


def test_what_does_not_fit_the_disk_is_refused_with_cheaper_settings(tiny_pipe, tmp_path, monkeypatch):
    plan = make_plan(tiny_pipe, n=4000, steps=4)
    monkeypatch.setattr(size_module.shutil, "disk_usage", lambda path: Usage(10**9, 0, 30_000_000))
    for run in (estimate, collect):
        with pytest.raises(NotEnoughSpace) as caught:
            run(tiny_pipe, plan, tmp_path / "s")
        message = str(caught.value)
        assert "only 30 MB are free" in message and "2 of the 4 steps takes" in message
        assert "pool='mean' takes" in message and "samples would fit" in message
        assert isinstance(caught.value, OSError) and not (tmp_path / "s").exists()


def test_what_does_not_fit_the_memory_is_refused(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(size_module, "available_memory", lambda: 10_000)
    with pytest.raises(NotEnoughMemory, match="only 10 kB are available.*shards of one sample .* take"):
        collect(tiny_pipe, make_plan(tiny_pipe), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_cached_files_count_as_available_memory(tmp_path, monkeypatch):
    """What a process wrote stays in its group's count until memory is asked for; it must not refuse the next run."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    machine = memory.available_memory()
    stat = "anon 2000000\nfile 97000000\ninactive_file 90000000\nactive_file 6000000\nshmem 1000000\n"
    for name, text in (("memory.max", "100000000\n"), ("memory.current", "99000000\n"), ("memory.stat", stat)):
        (tmp_path / name).write_text(text)
    assert memory.available_memory() == 97_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine is None or memory.available_memory() > 97_000_000  # type: ignore[operator]


_CHILD = """
import json, resource, sys
import torch
from probe.capture import CapturePlan, collect, estimate
from probe.model import load_pipeline
pipe = load_pipeline(sys.argv[1])
plan = CapturePlan.from_json(open(sys.argv[2]).read())
predicted = estimate(pipe, plan).host_peak_bytes
collect(pipe, plan, sys.argv[3])
print(json.dumps([predicted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read as Linux reports it")
def test_host_memory_stays_below_the_prediction(tiny_folder, tiny_pipe, tmp_path):
    from probe.model import load_pipeline

    # two shards of 32 samples x 4 steps x 2 branches, float32: up to 1 MB a site
    sites = ["unet.conv_in:out", "unet.down_blocks.0:out", "unet.up_blocks.1:out", "unet.up_blocks.1.resnets.0:out"]
    plan = make_plan(
        load_pipeline(tiny_folder), n=64, sites=sites, steps=4, dtype="float32", batch_size=32, max_samples_per_shard=32
    )
    (tmp_path / "plan.json").write_text(plan.to_json())
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tiny_folder), str(tmp_path / "plan.json"), str(tmp_path / "s")],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    predicted, real = json.loads(done.stdout)
    assert real <= 1.25 * predicted and predicted <= 2 * real


# What is kept


def test_token_layouts():
    layout = TokenLayout.choose(16, (4, 4), keep=5, seed=3, pool=None)
    assert layout.kept is not None and len(layout.kept) == 5 and list(layout.kept) == sorted(set(layout.kept))
    assert layout == TokenLayout.choose(16, (4, 4), keep=5, seed=3, pool=None)
    assert layout != TokenLayout.choose(16, (4, 4), keep=5, seed=4, pool=None)
    assert TokenLayout.choose(16, (4, 4), keep=16, seed=3, pool=None).recorded_grid == (4, 4)
    drawn = layout.to_map(np.arange(5.0))
    assert drawn.shape == (4, 4) and np.isnan(drawn).sum() == 11
    assert [drawn.flat[i] for i in layout.kept] == [0, 1, 2, 3, 4]
    with pytest.raises(NotAMap, match="4 values for 5 recorded tokens"):
        layout.to_map(np.zeros(4))
    with pytest.raises(NotAMap, match="mean over all 16 tokens"):
        TokenLayout.choose(16, (4, 4), keep=None, seed=0, pool="mean").to_map(np.zeros(1))
    with pytest.raises(NotAMap, match="sequence"):
        TokenLayout.choose(16, None, keep=3, seed=0, pool=None).to_map(np.zeros(3))


def test_a_token_subset_is_those_rows_of_the_whole_store(tiny_pipe, tmp_path):
    whole = collect(tiny_pipe, make_plan(tiny_pipe, n=3, dtype="float32"), tmp_path / "whole")
    few = collect(tiny_pipe, make_plan(tiny_pipe, n=3, dtype="float32", tokens=5, token_seed=2), tmp_path / "few")
    layout = TokenLayout.of(few, MID)
    assert few.site(MID).spec.tokens == 5 and few.site(MID).spec.grid is None
    assert layout.grid == (4, 4) and layout.kept is not None
    assert TokenLayout.of(few, DEEP).kept == layout.kept  # as many tokens, the same ones
    full = whole.site(MID).read()
    np.testing.assert_array_equal(few.site(MID).read(), full[..., list(layout.kept), :])
    drawn = layout.to_map(few.site(MID).read()[..., 0])
    there = ~np.isnan(drawn)
    assert there.sum() == 5 * full[..., 0, 0].size
    np.testing.assert_array_equal(drawn[there], full[..., 0].reshape(drawn.shape)[there])
    assert TokenLayout.of(whole, MID) == TokenLayout(16, (4, 4))
    with pytest.raises(PlanMismatch, match="token_seed"):
        collect(tiny_pipe, make_plan(tiny_pipe, n=3, dtype="float32", tokens=5, token_seed=3), tmp_path / "few")


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_rows(tiny_pipe, tmp_path, pool):
    whole = collect(tiny_pipe, make_plan(tiny_pipe, n=2, dtype="float32"), tmp_path / "whole")
    pooled = collect(tiny_pipe, make_plan(tiny_pipe, n=2, dtype="float32", pool=pool), tmp_path / "pooled")
    full = whole.site(MID).read()
    expected = full.mean(3, keepdims=True) if pool == "mean" else full.max(3, keepdims=True)
    np.testing.assert_allclose(pooled.site(MID).read(), expected, rtol=1e-5, atol=1e-6)
    assert TokenLayout.of(pooled, MID).pool == pool


def test_recorded_steps_are_those_of_the_whole_store(tiny_pipe, tmp_path):
    whole = collect(tiny_pipe, make_plan(tiny_pipe, n=3, steps=5), tmp_path / "whole")
    plan = make_plan(tiny_pipe, n=3, steps=5, record_steps=(3, 1))
    some = collect(tiny_pipe, plan, tmp_path / "some")
    assert plan.kept_steps == (1, 3) and plan != make_plan(tiny_pipe, n=3, steps=5)
    np.testing.assert_array_equal(some.site(MID).read(), whole.site(MID).read(step=[1, 3]))
    timesteps, log_snr = schedule(tiny_pipe, 5)
    assert some.spec.timesteps == (timesteps[1], timesteps[3])
    assert some.spec.log_snr == (log_snr[1], log_snr[3])
    assert some.plan["steps"] == 5 and some.plan["record_steps"] == [1, 3]
    assert CapturePlan.from_json(plan.to_json()) == plan
    image = (tmp_path / "some" / "images" / "000002.png").read_bytes()
    assert image == (tmp_path / "whole" / "images" / "000002.png").read_bytes()


def test_without_images_a_generation_ends_after_the_last_recorded_site(tiny_pipe, tmp_path):
    calls = {"unet": 0, "conv_out": 0, "decoder": 0}
    modules = {"unet": tiny_pipe.unet, "conv_out": tiny_pipe.unet.conv_out, "decoder": tiny_pipe.vae.decoder}

    def count(name: str):
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    plan = make_plan(tiny_pipe, n=2, steps=5, record_steps=(0, 2), images=False)
    spec = store_spec(tiny_pipe, plan)
    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    try:
        some = collect(tiny_pipe, plan, tmp_path / "some")
    finally:
        for handle in handles:
            handle.remove()
    # the observed call, then steps 0, 1 and 2 of the one batch, of which the last stops in the middle
    assert calls == {"unet": 1 + 3, "conv_out": 1 + 2, "decoder": 0}
    whole = collect(tiny_pipe, make_plan(tiny_pipe, n=2, steps=5), tmp_path / "whole")
    assert some.spec == spec
    np.testing.assert_array_equal(some.site(MID).read(), whole.site(MID).read(step=[0, 2]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_pipe.unet.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens must be an integer of at least 1, got 0"),
        ({"token_seed": -1}, "token_seed must be an integer of at least 0"),
        ({"pool": "median"}, "expected None or one of mean, max"),
        ({"pool": "mean", "tokens": 4}, "tokens=4 and pool='mean' exclude each other"),
        ({"on_nonfinite": "ignore"}, "expected refuse or flag"),
        ({"record_steps": ()}, "expected different steps from 0 to 2"),
        ({"record_steps": (3,)}, "expected different steps from 0 to 2"),
        ({"record_steps": (1, 1)}, "expected different steps from 0 to 2"),
    ],
)
def test_bad_settings(tiny_pipe, changes, message):
    with pytest.raises(InvalidPlan) as caught:
        make_plan(tiny_pipe, **changes)
    assert message in str(caught.value)


# Values that are not finite


def spoiled(kind: str):
    """A pipeline whose mid block gives one bad value a map: NaN, infinity, or one too large for float16."""
    pipe = build_tiny_pipeline()
    value = {"nan": float("nan"), "inf": float("inf"), "overflow": 1e5}[kind]

    def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        out = output.clone()
        out[:, 3, 1, 2] = value
        return out

    pipe.unet.mid_block.register_forward_hook(hook)
    pipe.unet.up_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            kwargs | {"hidden_states": torch.nan_to_num(kwargs["hidden_states"], posinf=0.0).clamp(-100, 100)},
        ),
        with_kwargs=True,
    )
    return pipe


@pytest.mark.parametrize("kind", ["nan", "inf", "overflow"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "int8"])
def test_values_that_are_not_finite(kind, dtype, tmp_path):
    pipe = spoiled(kind)
    harmless = kind == "overflow" and dtype != "float16"
    plan = make_plan(pipe, n=3, dtype=dtype, record_steps=(0, 2))
    if harmless:
        assert nonfinite(collect(pipe, plan, tmp_path / "s")) == {}
        return
    words = {"nan": "2 NaN, 0 infinite and 0", "inf": "0 NaN, 2 infinite and 0", "overflow": "0 infinite and 2 values"}
    with pytest.raises(NonFiniteActivations) as caught:
        collect(pipe, plan, tmp_path / "s")
    assert f"site {MID} step 0 branch uncond: " in str(caught.value) and words[kind] in str(caught.value)
    flagged = make_plan(pipe, n=3, dtype=dtype, record_steps=(0, 2), on_nonfinite="flag")
    store = collect(pipe, flagged, tmp_path / "flagged")
    found = nonfinite(store)
    assert list(found) == [MID]
    a_step = 3 * 2  # samples x branches
    expected = {"nan": (1, 0, 0), "inf": (0, 1, 0), "overflow": (0, 1, 1)}[kind]
    for counts, factor in zip((found[MID].nan, found[MID].inf, found[MID].overflow), expected, strict=True):
        assert counts.tolist() == [factor * a_step] * 2
    assert store.verify() == []
    assert not np.isfinite(store.site(MID).read()[..., 1 * 4 + 2, 3]).any()
