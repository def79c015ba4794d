"""probe.information from end to end on the canvas model: a few images, few nodes, one table on disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from activations_store import ActivationStore
from probe.canvas import FACTORS, parse_caption, render_batch
from probe.canvas.captions import partial_caption
from probe.capture.noising import encode
from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.information import (
    Column,
    Edited,
    GaussianControl,
    NodeTable,
    TruncatedWindow,
    ablation_columns,
    adaptive_nodes,
    caption_columns,
    carried_by_two,
    check_pipeline,
    class_columns,
    classify,
    collect_table,
    guidance_difference,
    information,
    likelihood,
    measure,
    open_table,
    pid,
    without_direction,
    without_feature,
    without_head,
    word_information,
    word_maps,
)
from probe.information.nodes import Nodes
from probe.information.table_store import denoiser_record
from probe.lenses import attention_maps
from probe.model import PipelineEps, load_pipeline

N, N_NODES = 6, 8


class World(NamedTuple):
    model: PipelineEps
    images: np.ndarray
    x: torch.Tensor
    words: dict[str, list[str]]
    masks: np.ndarray
    nodes: Nodes
    table: NodeTable
    path: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    model = PipelineEps(load_pipeline("canvas"))
    batch = render_batch(range(N), seed=3)
    names = [parse_caption(text) for text in batch.captions]
    words = {role: [n[role] for n in names] for role in ("object", "colour")}
    with torch.no_grad():
        x = encode(model.pipe, batch.images, model.sample_shape)
    pilot = [Column("empty"), Column("caption", batch.captions[:2])]
    nodes = adaptive_nodes(model, x[:2], pilot, N_NODES, pilot=8, batch=16)
    columns = caption_columns(batch.captions, words, absent={"object": "thing"}, say=partial_caption)
    columns.append(Column("control", model=GaussianControl.fit(x)))
    path = tmp_path_factory.mktemp("information") / "table"
    collect_table(path, model, x, columns, nodes, batch=16)
    masks = batch.masks.reshape(N, 16, 4, 16, 4).mean((2, 4)) > 127
    return World(model, batch.images, x, words, masks, nodes, open_table(path), path)


def test_nodes_stay_in_the_models_own_range(world):
    low, high = world.nodes.model_range
    assert low <= world.nodes.window[0] < world.nodes.window[1] <= high == world.model.log_snr_range[1]
    assert 0 < world.nodes.location < high


def test_the_store_knows_its_model_and_gives_the_table_back(world):
    store = ActivationStore.open(world.path)
    assert store.fingerprint["name"] == "canvas" and store.verify() == []
    assert world.table.grid == (16, 16) and world.table.dimensions == 8 * 256
    rows = [0, 4]
    again = measure(
        world.model, world.x, [Column("caption", store.samples.column("prompt").to_pylist())], world.nodes, batch=16
    )
    assert np.allclose(again.errors("caption")[rows], world.table.errors("caption")[rows], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::probe.information.TruncatedWindow")
def test_captions_and_words_beat_their_nulls(world):
    for found in (information(world.table, "caption"), *(word_information(world.table, r) for r in world.words)):
        assert found.null is not None
        assert found.mean > 0 > found.null.mean
        assert (found.pointwise > found.null.pointwise).all()


def test_the_window_ends_before_the_gap_does(world):
    with pytest.warns(TruncatedWindow, match="information of 'caption' given 'empty': window truncated"):
        information(world.table, "caption")


@pytest.mark.filterwarnings("ignore::probe.information.TruncatedWindow")
def test_maps_of_words_lie_on_the_object(world):
    for role in world.words:
        maps = word_information(world.table, role, form="orthogonal").maps.mean(0)
        inside = np.mean([maps[mask].mean() for mask in world.masks])
        assert inside > 1.5 * np.mean([maps[~mask].mean() for mask in world.masks])


@pytest.mark.filterwarnings("ignore::probe.information.TruncatedWindow")
def test_two_words_decompose(world):
    for context in (False, True):
        found = pid(world.table, "object", "colour", context=context)
        r, u1, u2, s = (float(v) for v in found.image)
        assert r + u1 + u2 + s == pytest.approx(found.both.mean) and min(r, u1, u2) >= 0
        assert found.pixels.redundancy.shape == (256,) and (found.pixels.redundancy >= 0).all()
        assert found.interval("redundancy", n=20).low > 0


def test_likelihood_is_better_with_the_caption(world):
    control = GaussianControl.fit(world.x)
    without, given = (likelihood(world.table, c, control=control) for c in ("empty", "caption"))
    assert np.isfinite(without.nats).all() and given.mean < without.mean
    assert np.allclose(without.bits_per_dimension * 2048 * np.log(2), without.nats)


def test_colours_are_read_off_the_errors(world):
    colours = FACTORS["colour"]
    columns = class_columns(N, {c: f"a {c} thing" for c in colours})
    table = measure(world.model, world.x, columns, world.nodes, batch=16)
    found = classify(table, colours)
    assert found.accuracy(world.words["colour"]) >= 5 / 6
    assert 0 <= found.information <= found.prior_entropy == pytest.approx(np.log(8))


@pytest.mark.filterwarnings("ignore::probe.information.TruncatedWindow")
def test_what_a_direction_carries_is_what_its_ablation_costs(world):
    model, x = world.model, world.x[:2]
    site = "unet.mid_block:out"
    seen: list[torch.Tensor] = []

    def same(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        return rows

    captions = ["a red star", "a blue cup"]
    nodes = Nodes(4, (-4.0, 6.0), placement="gauss")
    idle = Edited(model, site, same, "nothing")
    measure(model, x, [Column("idle", captions, model=idle)], nodes, batch=8)
    rows = seen[0].flatten(0, 1)
    mean = rows.mean(0)
    main = torch.linalg.svd(rows - mean, full_matrices=False).Vh
    columns = [Column("intact", captions), Column("idle", captions, model=idle)]
    columns += [
        Column(name, captions, model=Edited(model, site, without_direction(main[k], mean), name))
        for name, k in (("first", 0), ("last", -1))
    ]
    table = measure(model, x, columns, nodes, batch=8)
    lost = {c: information(table, "intact", given=c, form="orthogonal") for c in ("idle", "first", "last")}
    assert lost["idle"].mean == 0.0
    assert lost["first"].mean > 2 * lost["last"].mean > 0
    assert lost["first"].maps.shape == (2, 16, 16)
    assert not model.pipe.unet.mid_block._forward_hooks
    records = [denoiser_record(c.model) for c in columns[1:] if c.model is not None]
    assert len({str(r) for r in records}) == 3 and records[0]["site"] == site


def test_every_kind_of_map_of_a_word(world):
    captions = [str(c) for c in ActivationStore.open(world.path).samples.column("prompt").to_pylist()]
    words, levels = [[w] for w in world.words["object"]], [-2.0, 2.0]
    attention = attention_maps(world.model.pipe, captions, words, images=world.images, log_snr=levels).heat()[:, 0]
    maps = word_maps(world.table, "object", other="colour", attention=attention)
    assert set(maps) == {
        "MI", "CMI", "null", "PID unique", "guidance difference", "attention", "attention x CMI"
    }  # fmt: skip
    assert all(m.shape == (N, 16, 16) and (m >= 0).all() and m.max() > 0 for m in maps.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncatedWindow)
        found = word_information(world.table, "object", form="orthogonal")
        assert np.allclose(maps["CMI"], found.maps) and found.null is not None
        assert np.allclose(maps["null"], found.null.maps)
        one = pid(world.table.select([2]), "object", "colour").pixels
    assert np.allclose(maps["PID unique"][2].ravel(), one.unique_first)
    assert np.allclose(found.region(np.ones(256, bool)), found.pointwise)
    assert np.allclose(found.region(world.masks.reshape(N, -1)) + found.region(~world.masks.reshape(N, -1)),
                       found.pointwise)  # fmt: skip
    apart = np.sqrt(world.table.differences("empty", "caption"))
    mean = (apart * world.table.weight[..., None]).sum(1) / world.table.weight.sum(1)[:, None]
    assert np.allclose(guidance_difference(world.table), mean)
    with pytest.raises(InvalidRequest, match=r"maps \(5, 8, 8\) for 6 images"):
        word_maps(world.table, "object", attention=attention[:5])


@pytest.mark.filterwarnings("ignore::probe.information.TruncatedWindow")
def test_features_and_heads_decompose(world):
    model, x = world.model, world.x[:2]
    captions, nodes = ["a red star", "a blue cup"], Nodes(3, (-3.0, 3.0), placement="gauss")
    site = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0:in"
    n_heads = model.pipe.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2").heads
    heads = {f"head {h}": without_head(h, n_heads) for h in range(2)}
    table = measure(model, x, ablation_columns(model, captions, site, heads), nodes, batch=8)
    assert table.columns == ("intact", "away:head 0", "away:head 1", "away:head 0+head 1")
    found = carried_by_two(table, "head 0", "head 1")
    assert float(sum(found.image)) == pytest.approx(found.both.mean) and found.both.mean > 0
    assert found.first.given == "away:head 0+head 1" and found.first.column == "away:head 1"
    same = measure(
        model, x, ablation_columns(model, captions, site, {"a": heads["head 0"], "b": heads["head 0"]}), nodes
    )
    copies = carried_by_two(same, "a", "b")  # a part beside its own copy: neither is there without the other
    assert float(copies.image.synergy) == pytest.approx(copies.both.mean) and copies.first.mean == 0.0

    class Halves:
        """Two features: the mean of the row's halves."""

        def encode(self, x):
            return x.unflatten(-1, (2, -1)).mean(-1)

        def decode(self, z):
            return z.repeat_interleave(64, -1)

    rows = torch.randn(2, 5, 128)
    off = without_feature(Halves(), 1)(rows)
    assert torch.equal(off[..., :64], rows[..., :64]) and off[..., 64:].mean(-1).abs().max() < 1e-6
    assert torch.allclose(off[..., 64:].diff(), rows[..., 64:].diff(), atol=1e-5)  # the rest is kept
    for bad, message in (
        (lambda: without_head(4, 4), "head 4 of 4"),
        (lambda: without_head(0, 3)(rows), "128 numbers are not 3 heads side by side"),
        (lambda: without_feature(Halves(), 2)(rows), "feature 2"),
        (
            lambda: ablation_columns(model, captions, site, heads, pairs=[("head 0", "x")]),
            "x; expected names of head 0",
        ),
    ):
        with pytest.raises(InvalidRequest, match=message):
            bad()


def test_distilled_and_discrete_models_are_refused_with_the_reason(tiny_folder):
    from diffusers import AmusedScheduler, LCMScheduler

    pipe = load_pipeline(tiny_folder)
    check_pipeline(pipe)
    model = PipelineEps(pipe)
    x = torch.zeros(1, *model.sample_shape)
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UnsupportedPipeline, match="guidance-distilled .its denoiser takes the guidance scale"):
        measure(model, x, [Column("empty")], Nodes(2, (-1.0, 1.0)))
    pipe.unet.register_to_config(time_cond_proj_dim=None)
    pipe.scheduler = LCMScheduler()
    with pytest.raises(UnsupportedPipeline, match="its scheduler is LCMScheduler"):
        check_pipeline(pipe)
    pipe.scheduler = AmusedScheduler(mask_token_id=0)
    with pytest.raises(UnsupportedPipeline, match="denoises discrete tokens"):
        check_pipeline(pipe)


def test_edits_refuse(world):
    with pytest.raises(InvalidRequest, match="expected one site with port 'in' or 'out'"):
        Edited(world.model, "unet.mid_block:delta", lambda rows: rows, "x")
    with pytest.raises(InvalidRequest, match="expected one site"):
        Edited(world.model, "unet.up_blocks.*", lambda rows: rows, "x")
    with pytest.raises(InvalidRequest, match="not all zero"):
        without_direction(torch.zeros(3))
    cut = Edited(world.model, "unet.mid_block", lambda rows: rows[:, :1], "cut")
    with pytest.raises(InvalidRequest, match="the change made rows"):
        cut.eps(world.x[:1], 0.0, "a star")
