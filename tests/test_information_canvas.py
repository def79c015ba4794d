"""probe.information from end to end on the canvas model: a few images, few nodes, one table on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from activations_store import ActivationStore
from probe.canvas import FACTORS, parse_caption, render_batch
from probe.canvas.captions import partial_caption
from probe.capture.noising import encode
from probe.errors import InvalidRequest
from probe.information import (
    Column,
    Edited,
    GaussianControl,
    NodeTable,
    TruncatedWindow,
    adaptive_nodes,
    caption_columns,
    class_columns,
    classify,
    collect_table,
    information,
    likelihood,
    measure,
    open_table,
    pid,
    without_direction,
    word_information,
)
from probe.information.nodes import Nodes
from probe.information.table_store import denoiser_record
from probe.model import PipelineEps, load_pipeline

N, N_NODES = 6, 8


class World(NamedTuple):
    model: PipelineEps
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
    return World(model, x, words, masks, nodes, open_table(path), path)


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
