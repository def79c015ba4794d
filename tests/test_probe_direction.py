"""probe.directions.Direction: geometry against formulas, files, and use by interventions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from seeded import SEEDS, normal

from probe.capture import Recorder, resolve_sites
from probe.directions.direction import Direction, random_direction
from probe.directions.files import load_direction, save_direction
from probe.directions.transport import transported
from probe.errors import DirectionExists, DirectionNotFound, InvalidDirection
from probe.interventions import intervene
from probe.model import generate

SITE = "unet.mid_block:out"


def direction(seed: int, n: int = 3, k: int = 2, d: int = 6, **options: Any) -> Direction:
    options = {"timesteps": range(900, 900 - 100 * n, -100)} | options
    return Direction(SITE, normal(seed, n, k, d), normal(seed + 1, n, k).abs(), **options)


# Geometry


@pytest.mark.parametrize("seed", SEEDS)
def test_signs_align_along_the_table_and_with_a_reference(seed):
    base = normal(seed, 1, 2, 6)
    flips = torch.tensor([[1, -1], [-1, 1], [-1, -1], [1, 1]])[:, :, None]
    tangled = Direction(SITE, (base + 0.1 * normal(seed + 1, 4, 2, 6)) * flips)
    straight = tangled.aligned()
    products = (straight.flat[1:] * straight.flat[:-1]).sum(-1)
    assert (products > 0).all()
    assert (straight.flat[0].gather(1, straight.flat[0].abs().argmax(1, keepdim=True)) > 0).all()
    reference = Direction(SITE, -base)
    assert ((tangled.aligned(reference).flat * reference.flat).sum(-1) > 0).all()
    torch.testing.assert_close(straight.flat.abs(), tangled.flat.abs())


@pytest.mark.parametrize("seed", SEEDS)
def test_orthonormal_bases_keep_the_span_and_the_first_course(seed):
    found = direction(seed).orthonormalised()
    torch.testing.assert_close(found.flat @ found.flat.mT, torch.eye(2).double().expand(3, 2, 2))
    raw = direction(seed)
    torch.testing.assert_close(found.flat[:, 0], raw.normalised().flat[:, 0])
    for row in range(3):
        both = torch.cat([found.flat[row], raw.flat[row]])
        assert torch.linalg.matrix_rank(both, rtol=1e-6) == 2
    with pytest.raises(InvalidDirection, match="not independent"):
        Direction(SITE, torch.ones(1, 2, 6)).orthonormalised()


@pytest.mark.parametrize("seed", SEEDS)
def test_projecting_out_leaves_nothing_along_the_others(seed):
    found, others = direction(seed), [direction(seed + 5, k=1), direction(seed + 6, n=1, k=2, timesteps=None)]
    left = found.project_out(others)
    for other in others:
        assert (left.flat @ other.flat.mT).abs().max() < 1e-12
    spanned = torch.cat([o.flat.expand(3, -1, -1) for o in others], 1)
    exact = found.flat - torch.linalg.lstsq(spanned.mT, found.flat.mT).solution.mT @ spanned
    torch.testing.assert_close(left.flat, exact)
    twice = found.project_out([others[0], others[0]])  # dependent others
    torch.testing.assert_close(twice.flat, found.project_out(others[0]).flat)


def test_coefficients_are_least_squares():
    found = direction(0)
    weights = normal(9, 4, 2)
    torch.testing.assert_close(found.coefficients(weights @ found.flat[1], row=1), weights)
    assert found.coefficients(found.flat[0, 0]).shape == (2,)


@pytest.mark.parametrize("seed", SEEDS)
def test_transport_maps_one_basis_to_the_other(seed):
    here, there = (direction(seed + i, n=1, k=3, timesteps=None).orthonormalised() for i in range(2))
    weights = normal(seed + 3, 3)
    combined = Direction(SITE, (weights @ here.flat[0])[None, None])
    torch.testing.assert_close(transported(combined, here, there).flat[0, 0], weights @ there.flat[0])
    assert transported(combined, here, there).provenance["transported"]["to"] == there.hash


@pytest.mark.parametrize("seed", SEEDS)
def test_whitened_cosine_does_not_depend_on_the_coordinates(seed):
    a, b = direction(seed), direction(seed + 1)
    root = normal(seed + 2, 6, 6)
    covariance = root @ root.T
    found = a.cosine(b, covariance)
    mixing = normal(seed + 3, 6, 6)  # x -> M x turns v into M v and S into M S M^T
    moved = Direction(SITE, a.flat @ mixing.T), Direction(SITE, b.flat @ mixing.T)
    torch.testing.assert_close(moved[0].cosine(moved[1], mixing @ covariance @ mixing.T), found, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.cosine(a).diagonal(dim1=1, dim2=2), torch.ones(3, 2).double())
    plain = torch.nn.functional.cosine_similarity(a.flat[:, :, None], b.flat[:, None], dim=-1)
    torch.testing.assert_close(a.cosine(b), plain)
    assert not torch.allclose(found, plain, atol=0.05)


def test_random_direction_is_a_control_of_the_same_lengths():
    found = direction(0)
    control = random_direction(found, 3)
    torch.testing.assert_close(control.flat.norm(dim=-1), found.flat.norm(dim=-1))
    assert torch.equal(control.scales, found.scales) and control.provenance["like"] == found.hash
    assert not torch.allclose(control.flat, random_direction(found, 4).flat)


# Files


def test_files_round_trip_and_notice_every_change(tmp_path):
    found = direction(0, frame="per_step", steps=(0, 2), provenance={"finder": "x", "mask": [1, 2]})
    folder = save_direction(found, tmp_path / "d")
    again = load_direction(folder)
    assert again.hash == found.hash and again.record() == found.record()
    assert torch.equal(again.basis, found.basis) and torch.equal(again.scales, found.scales)
    with pytest.raises(DirectionExists):
        save_direction(found, folder)
    with pytest.raises(DirectionNotFound, match="holds no"):
        load_direction(tmp_path)
    path = folder / "direction.json"
    record = json.loads(path.read_text())
    for change in ({"frame": "local"}, {"provenance": {"finder": "y"}}, {"steps": None}):
        path.write_text(json.dumps(record | change))
        with pytest.raises(InvalidDirection, match="hash is another"):
            load_direction(folder)
    for change in ({"version": 2}, {"format": "other"}):
        path.write_text(json.dumps(record | change))
        with pytest.raises(InvalidDirection, match="reads"):
            load_direction(folder)
    path.write_text("[]")
    with pytest.raises(InvalidDirection, match="damaged"):
        load_direction(folder)
    path.write_text(json.dumps(record))
    data = bytearray((folder / "direction.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "direction.safetensors").write_bytes(bytes(data))
    with pytest.raises(InvalidDirection, match="does not belong"):
        load_direction(folder)


def test_the_hash_covers_every_argument():
    same: dict[str, Any] = {"frame": "per_step", "steps": (0,), "provenance": {"a": 1}}
    base = direction(0, **same)
    assert base.hash == direction(0, **same).hash
    changes: list[dict[str, Any]] = [{"frame": "local"}, {"steps": (1,)}, {"provenance": {"a": 2}}, {"timesteps": None}]
    for change in changes:
        assert direction(0, **(same | change)).hash != base.hash
    assert direction(1, **same).hash != base.hash
    assert Direction(SITE, base.basis, base.scales * 2, **same, timesteps=base.timesteps).hash != base.hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"basis": torch.zeros(1, 1, 1, 1, 1)}, "expected"),
        ({"basis": torch.full((1, 1, 4), float("nan"))}, "finite"),
        ({"basis": torch.ones(2, 1, 4), "scale": torch.ones(1, 1)}, "scale"),
        ({"basis": torch.ones(2, 1, 4), "scale": -torch.ones(2, 1)}, ">= 0"),
        ({"basis": torch.ones(2, 1, 4), "timesteps": (1,)}, "2 rows, but 1 timesteps"),
        ({"basis": torch.ones(2, 1, 4), "frame": "lokal"}, "expected one of global"),
    ],
)
def test_impossible_directions(arguments, message):
    with pytest.raises(InvalidDirection, match=message):
        Direction(SITE, **arguments)


def test_directions_of_different_spaces_do_not_meet():
    found = direction(0)
    for other in (Direction("unet.conv_out:out", torch.ones(3, 2, 6)), Direction(SITE, torch.ones(3, 2, 5))):
        with pytest.raises(InvalidDirection, match="different spaces"):
            found.cosine(other)


# Use


def rows_of(pipe, interventions) -> torch.Tensor:
    seen = []

    def keep(site, step, branches, rows, grid) -> None:
        seen.append(rows.clone().unflatten(0, (len(branches), -1)))

    with intervene(pipe, interventions), Recorder(pipe, resolve_sites(pipe, SITE), keep):
        generate(pipe, ["a red star"], [3], steps=3, guidance=2.0)
    return torch.stack(seen)  # (steps, branches, samples, tokens, channels)


def test_v32_strength_zero_is_the_identity(tiny_pipe):
    plain = generate(tiny_pipe, ["a red star"], [3], steps=3, guidance=2.0)
    for basis in (normal(0, 1, 1, 16), normal(0, 1, 1, 16, 16)):
        edit = Direction(SITE, basis).intervention(strength=0.0)
        edited = generate(tiny_pipe, ["a red star"], [3], steps=3, guidance=2.0, interventions=[edit])
        np.testing.assert_array_equal(edited, plain)


@pytest.mark.parametrize("tokens", [(), (16,)])
def test_an_intervention_moves_the_site_by_strength_times_scale(tiny_pipe, tokens):
    basis = 3 * normal(1, 1, 2, *tokens, 16)
    found = Direction(SITE, basis, torch.tensor([[0.5, 2.0]]), steps=(0,))
    moved = rows_of(tiny_pipe, found.intervention(1, -1.5)) - rows_of(tiny_pipe, [])
    vector = basis[0, 1] / basis[0, 1].norm()
    expected = (-1.5 * 2.0 * vector).float().expand(16, 16)
    torch.testing.assert_close(moved[0], expected.expand_as(moved[0]), rtol=1e-4, atol=1e-5)
    raw = rows_of(tiny_pipe, found.intervention(1, 1.0, unit="raw", branch="cond")) - rows_of(tiny_pipe, [])
    torch.testing.assert_close(raw[0, 1, 0], basis[0, 1].float().expand(16, 16), rtol=1e-4, atol=1e-5)
    assert raw[0, 0].abs().max() == 0


def test_a_table_follows_the_timesteps_and_removal_projects(tiny_pipe):
    table = torch.zeros(3, 1, 16)
    table[1] = 1.0
    found = Direction(SITE, table + 1e-9, timesteps=tuple(int(t) for t in (999, 666, 333)))
    moved = rows_of(tiny_pipe, found.intervention(unit="raw")) - rows_of(tiny_pipe, [])
    assert moved[0].abs().max() < 1e-6
    torch.testing.assert_close(moved[1], torch.ones_like(moved[1]), rtol=1e-4, atol=1e-5)
    basis = normal(2, 1, 2, 16)
    gone = rows_of(tiny_pipe, Direction(SITE, basis).removal())
    assert (gone.double() @ basis[0].T).abs().max() < 1e-4
    with pytest.raises(InvalidDirection, match="only rows"):
        Direction(SITE, torch.ones(1, 1, 16, 16)).removal()
