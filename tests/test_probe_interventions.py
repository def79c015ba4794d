"""probe.interventions: identity, branches, steps, ports, masks, order, hook removal, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from intervention_support import D_SAE, PROMPTS, SEEDS, STEPS, D, draw, random_dictionary

from probe.capture import Recorder, Site, resolve_sites
from probe.errors import (
    ConflictingInterventions,
    InvalidIntervention,
    UnknownSite,
)
from probe.interventions import (
    AddDirection,
    Intervention,
    Op,
    Replace,
    ScaleFeatures,
    SetFeatures,
    add_feature,
    intervene,
)
from probe.model import generate

PORTS = ["mid_block:in", "mid_block:out", "mid_block:delta", "up_blocks.0.attentions.0:delta", "down_blocks.1:out"]
POLICIES = ["cond", "uncond", "both", "opposite"]


def record(pipe, site, interventions=(), guidance=2.0) -> torch.Tensor:
    """(steps, branches, samples, tokens, channels) at a site, after the interventions."""
    seen: list[torch.Tensor] = []
    sites = resolve_sites(pipe, site)

    def keep(site, step, branches, rows, grid) -> None:
        assert step == len(seen)
        seen.append(rows.clone().unflatten(0, (len(branches), -1)))

    with intervene(pipe, interventions), Recorder(pipe, sites, keep):
        generate(pipe, PROMPTS, SEEDS, steps=STEPS, guidance=guidance)
    return torch.stack(seen)


def n_hooks(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


@pytest.fixture(scope="module")
def plain(tiny_pipe) -> np.ndarray:
    return draw(tiny_pipe)


# An edit that changes nothing


def no_ops() -> dict[str, tuple[Op, float]]:
    features = torch.arange(D_SAE)
    return {
        "zero strength": (AddDirection(torch.ones(D)), 0.0),
        "zero direction": (AddDirection(torch.zeros(D)), 1.0),
        "multiplier 1": (ScaleFeatures(random_dictionary(), features, 1.0), 1.0),
        "threshold out of reach": (ScaleFeatures(random_dictionary(), features, -5.0, thresholds=1e9), 1.0),
        "no features": (ScaleFeatures(random_dictionary(), torch.tensor([-1, -1])), 1.0),
    }


@pytest.mark.parametrize("branch", POLICIES)
@pytest.mark.parametrize("port", PORTS)
def test_no_op_is_the_identity_bit_for_bit(tiny_pipe, plain, port, branch):
    edits = [Intervention(port, op, branch=branch, strength=strength) for op, strength in no_ops().values()]
    np.testing.assert_array_equal(draw(tiny_pipe, edits), plain)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_v32_edits_that_are_off_give_the_very_image(tiny_pipe, seed):
    edits = [Intervention("mid_block", op, strength=strength) for op, strength in no_ops().values()]
    images = [generate(tiny_pipe, PROMPTS[:1], [seed], steps=STEPS, interventions=e) for e in ([], edits)]
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize("name", list(no_ops()))
def test_no_op_keeps_every_bit_of_the_models_output(tiny_pipe, name):
    op, strength = no_ops()[name]
    edited = record(tiny_pipe, "conv_out", [Intervention("mid_block", op, strength=strength)])
    assert torch.equal(edited.view(torch.int32), record(tiny_pipe, "conv_out").view(torch.int32))


def test_per_step_tables_follow_the_step_or_the_nearest_timestep(tiny_pipe):
    directions = torch.zeros(3, D)
    directions[1] = 1.0
    by_step = record(tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(directions))])
    base = record(tiny_pipe, "mid_block")
    assert torch.equal(by_step[0], base[0])
    torch.testing.assert_close(by_step[1], base[1] + 1.0)  # later steps start from other latents
    ten = torch.zeros(10, D)
    ten[3] = 1.0  # nearest to the timestep of step 1 of 3
    times = tuple(range(999, 0, -100))
    by_time = record(tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(ten, timesteps=times))])
    assert torch.equal(by_time, by_step)
    with pytest.raises(InvalidIntervention, match="its table has 2 steps, but the pipeline is at step 2"):
        draw(tiny_pipe, [Intervention("mid_block", AddDirection(directions[:2]))])


# Where an edit applies


@pytest.mark.parametrize(
    ("branch", "uncond", "cond"), [("cond", 0, 1), ("uncond", 1, 0), ("both", 1, 1), ("opposite", -1, 1)]
)
def test_branch_policies_measured_on_activations(tiny_pipe, branch, uncond, cond):
    v = torch.linspace(-1, 1, D)
    base = record(tiny_pipe, "mid_block")[0]  # at later steps the latents differ as well
    edited = record(tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(v), branch=branch, strength=0.5)])[
        0
    ]
    for found, before, sign in zip(edited, base, (uncond, cond), strict=True):
        if sign == 0:
            assert torch.equal(found, before)
        torch.testing.assert_close(found, before + 0.5 * sign * v)


def test_policies_without_guidance(tiny_pipe):
    v = torch.ones(D)
    base = record(tiny_pipe, "mid_block", guidance=1.0)
    assert base.shape[1] == 1
    edited = record(
        tiny_pipe, "mid_block", [Intervention("mid_block", AddDirection(v), branch="opposite")], guidance=1.0
    )
    torch.testing.assert_close(edited[0], base[0] + v)
    with pytest.raises(InvalidIntervention, match="this generation computes cond only"):
        draw(tiny_pipe, [Intervention("mid_block", AddDirection(v), branch="uncond")], guidance=1.0)


def test_step_windows_also_after_an_aborted_generation(tiny_pipe):
    edit = Intervention("mid_block", AddDirection(torch.ones(D)), steps=range(1, 2))
    base = record(tiny_pipe, "mid_block")
    with intervene(tiny_pipe, edit):
        broken = tiny_pipe.unet.conv_out.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate(tiny_pipe, PROMPTS, SEEDS, steps=STEPS)
        broken.remove()
        for _ in range(2):
            edited = record(tiny_pipe, "mid_block")
            assert torch.equal(edited[0], base[0])
            torch.testing.assert_close(edited[1], base[1] + 1.0)


@pytest.mark.parametrize("port", ["in", "out", "delta"])
def test_ports(tiny_pipe, port):
    site = f"up_blocks.0.attentions.0:{port}"
    base, edited = (record(tiny_pipe, site, e)[0] for e in ([], [Intervention(site, AddDirection(torch.ones(D)))]))
    torch.testing.assert_close(edited, base + 1.0, rtol=1e-5, atol=1e-6)


def test_masks(tiny_pipe):
    base = record(tiny_pipe, "mid_block")[0]
    mask = np.zeros((4, 4), dtype=np.float32)
    mask[1, 2] = 1.0
    edit = Intervention("mid_block", AddDirection(torch.ones(D)), mask=torch.from_numpy(mask))
    changed = (record(tiny_pipe, "mid_block", [edit])[0] != base).any(-1)
    assert changed[..., 6].all() and changed.sum() == 4  # cell (1, 2) in 2 branches x 2 samples
    fine = np.kron(mask, np.ones((16, 16), dtype=np.float32))  # a picture-sized mask is averaged to the grid
    again = Intervention("mid_block", AddDirection(torch.ones(D)), mask=torch.from_numpy(fine))
    assert torch.equal(record(tiny_pipe, "mid_block", [again])[0], record(tiny_pipe, "mid_block", [edit])[0])
    with pytest.raises(InvalidIntervention, match="the mask has 7 cells, the site 16 tokens"):
        draw(tiny_pipe, [Intervention("mid_block", AddDirection(torch.ones(D)), mask=torch.ones(7))])


def test_edits_compose_in_declared_order(tiny_pipe):
    value = torch.linspace(0, 1, 16 * D).reshape(16, D)
    replace, add = Intervention("mid_block", Replace(value)), Intervention("mid_block", AddDirection(torch.ones(D)))
    assert torch.equal(record(tiny_pipe, "mid_block", [add, replace])[0, 0, 0], value)
    torch.testing.assert_close(record(tiny_pipe, "mid_block", [replace, add])[0, 0, 0], value + 1.0)


def test_adding_then_subtracting_returns_the_start(tiny_pipe, plain):
    v = torch.full((D,), 0.5)  # exactly representable
    there = Intervention("mid_block", AddDirection(v))
    back = Intervention("mid_block", AddDirection(v), strength=-1.0)
    assert (draw(tiny_pipe, [there]) != plain).any()
    assert np.abs(draw(tiny_pipe, [there, back]).astype(int) - plain).max() <= 1


def test_two_replacements_are_refused(tiny_pipe):
    replace = Intervention("mid_block", Replace(torch.zeros(16, D)))
    with (
        pytest.raises(ConflictingInterventions, match="both replace the whole tensor"),
        intervene(tiny_pipe, [replace] * 2),
    ):
        pass
    dictionary = random_dictionary()
    a, b = (Intervention("mid_block", SetFeatures(dictionary, f, 1.0)) for f in ([1, 2], [2, 3]))
    with pytest.raises(ConflictingInterventions, match="both set feature 2"), intervene(tiny_pipe, [a, b]):
        pass
    assert n_hooks(tiny_pipe) == 0


def test_hooks_are_removed(tiny_pipe, plain):
    edit = Intervention("mid_block", AddDirection(torch.ones(D)))
    with intervene(tiny_pipe, edit):
        assert n_hooks(tiny_pipe) == 2  # the edit and the step clock
    assert n_hooks(tiny_pipe) == 0
    with pytest.raises(ZeroDivisionError), intervene(tiny_pipe, edit):
        raise ZeroDivisionError
    with pytest.raises(InvalidIntervention, match="the site has 16 channels, but 5 were expected"):
        draw(tiny_pipe, [edit, Intervention("mid_block", AddDirection(torch.ones(5)))])
    with (
        pytest.raises(UnknownSite, match="Near matches"),
        intervene(tiny_pipe, [edit, Intervention("midblock", edit.op)]),
    ):
        pass
    assert n_hooks(tiny_pipe) == 0
    np.testing.assert_array_equal(draw(tiny_pipe), plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Intervention("mid_block", AddDirection(torch.ones(D)), branch="left"), "branch 'left'"),
        (lambda: Intervention("mid_block", AddDirection(torch.ones(D)), strength=float("inf")), "not finite"),
        (lambda: Intervention("mid_block", AddDirection(torch.ones(D)), steps=(-1,)), "whole number from 0"),
        (lambda: Intervention("mid_block", "add"), "op is str"),  # type: ignore[arg-type]
        (lambda: Intervention("mid_block", Replace(torch.ones(4, D)), branch="opposite"), "no opposite"),
        (lambda: AddDirection(torch.tensor([1.0, float("nan")])), "NaN or infinity"),
        (lambda: AddDirection(torch.ones(D), "std"), "needs a scale"),
        (lambda: AddDirection(torch.ones(D), "loud"), "unit 'loud'"),
        (lambda: AddDirection(torch.ones(3, D), timesteps=(1, 2)), "3 rows in the table but 2 timesteps"),
        (lambda: ScaleFeatures(random_dictionary(), [D_SAE]), "the dictionary has 0 to 23"),
        (lambda: ScaleFeatures(random_dictionary(), [3, 3]), "named twice"),
        (lambda: ScaleFeatures(random_dictionary(), [3], thresholds=-1.0), "thresholds go below 0"),
        (lambda: SetFeatures(random_dictionary(), [3], -1.0), "values go below 0"),
        (lambda: SetFeatures(random_dictionary(), [3, 4], [1.0]), "expected that of the features"),
        (lambda: add_feature(random_dictionary(), 99), "the dictionary has 0 to 23"),
    ],
)
def test_bad_interventions(make, message):
    with pytest.raises(InvalidIntervention) as caught:
        make()
    assert message in str(caught.value)


def test_sites_compare_by_name():
    assert Intervention("unet.mid_block", AddDirection(torch.ones(D))).where == Site("unet.mid_block", "out")
