"""A gradient that reaches an edit passes through it: against finite differences, for every kind of operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline

from probe.interventions import (
    AddDirection,
    DeactivateFeatures,
    EqualNorm,
    Intervention,
    LowRank,
    NormScaleFeatures,
    ProjectOut,
    ReplaceFlagged,
    ScaleFeatures,
    ScaleHeads,
    SetFeatures,
    TopKDictionary,
    intervene,
)
from probe.interventions.edit import edit
from probe.interventions.ops import Moment
from probe.interventions.places import place

D = 16


def dictionary(seed: int) -> TopKDictionary:
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(D, 24, generator=draw)
    W_dec = torch.randn(24, D, generator=draw)
    return TopKDictionary(W, torch.zeros(24), W_dec / W_dec.norm(dim=1, keepdim=True), torch.zeros(D), 6)


def operations(seed: int) -> dict[str, object]:
    sae, draw = dictionary(seed), torch.Generator().manual_seed(seed + 1)
    features = torch.arange(24)
    push = AddDirection(torch.randn(D, generator=draw))
    return {
        "add": push,
        "project": ProjectOut(torch.randn(2, D, generator=draw)),
        "low_rank": LowRank(torch.randn(16, 2, generator=draw), torch.randn(2, D, generator=draw)),
        "scale": ScaleFeatures(sae, features, -3.0, 0.1),
        "set": SetFeatures(sae, features[:3], 1.0),
        "norm_scale": NormScaleFeatures(sae, features, -0.5, 0.1),
        "flagged": ReplaceFlagged(sae, features[:2], 1.0),
        "deactivate": DeactivateFeatures(sae, features[:5]),
        "equal_norm": EqualNorm(ScaleFeatures(sae, features, 0.0, 0.1), 3),
    }


@pytest.mark.parametrize("name", operations(0))
def test_the_gradient_is_that_of_the_edited_rows(tiny_pipe, name):
    for seed in range(3):
        where = place(tiny_pipe, Intervention("mid_block", operations(seed)[name], strength=0.7))  # type: ignore[arg-type]
        draw = torch.Generator().manual_seed(seed + 10)
        x = torch.randn(2, D, 4, 4, generator=draw)
        seen = torch.randn(2, D, 4, 4, generator=draw)

        def value(moved: torch.Tensor) -> torch.Tensor:
            found = edit(moved, where, 0.7, ("cond",), Moment(0, 999.0))  # noqa: B023
            return (found.double() * seen).sum()  # noqa: B023

        moving = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(value(moving), moving)
        errors, h = [], 1e-3
        for _ in range(9):
            along = torch.zeros(2, D, 4, 4)
            at = tuple(int(torch.randint(n, (1,), generator=draw)) for n in along.shape)
            along[at] = 1.0
            difference = float(value(x + h * along) - value(x - h * along)) / (2 * h)
            errors.append(abs(float(gradient[at]) - difference) / (abs(difference) + 0.1))
        assert np.median(errors) < 0.03, errors  # a code that switches on in between is a jump, not an error


def test_an_edit_outside_a_gradient_keeps_none(tiny_pipe):
    for name, op in operations(0).items():
        where = place(tiny_pipe, Intervention("mid_block", op))  # type: ignore[arg-type]
        assert not edit(torch.randn(1, D, 4, 4), where, 1.0, ("cond",), Moment(0, 999.0)).requires_grad, name


def test_gradients_pass_through_attention_edits():
    pipe = build_tiny_pipeline()
    site = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2:probs"
    text = torch.randn(1, 32, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pipe.scheduler.set_timesteps(4)
    t = pipe.scheduler.timesteps[1]
    found = []
    for edits in ((), (Intervention(site, ScaleHeads(torch.tensor([0.0, 2.0])), branch="cond"),)):
        pipe._guidance_scale = 1.0
        with intervene(pipe, edits):
            output = pipe.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
        found.append(torch.autograd.grad(output.square().sum(), text)[0])
    assert (found[0] != found[1]).any()
