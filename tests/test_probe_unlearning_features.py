"""Unlearning methods that edit features of a dictionary, each against its equations."""

from __future__ import annotations

import pytest
import torch
from intervention_support import HERE, D
from unlearning_support import TIMES, dictionary, planted_scores, rows

from probe.errors import InvalidRequest, UnknownSite
from probe.interventions import (
    AddDirection,
    DeactivateFeatures,
    NormScaleFeatures,
    Patch,
    ReplaceFlagged,
    TopKDictionary,
    intervene,
    text_embedding,
)
from probe.interventions.ops import StepContext
from probe.unlearning import (
    Setting,
    concept_steerer,
    deactivate,
    norm_scaled,
    patch_replacement,
    transport,
)

LAYER = "text_encoder.encoder.layers.0"


# Dictionaries of the denoiser


def test_norm_scaled_computes_its_equation():
    d, scores = dictionary(), planted_scores()
    (edit,) = norm_scaled(scores, "moon", dictionary=d, site="mid_block", setting=Setting(1, -0.5), timesteps=TIMES)
    assert isinstance(edit.op, NormScaleFeatures)
    x = 3 * rows(50)
    z = d.encode(x)
    on = z[..., 1] > scores.mean_activation[0, 1]
    assert on.any() and not on.all()
    new = -0.5 * z.norm(dim=-1) / d.W_dec[1].norm() * z[..., 1]
    expected = x + torch.where(on, new - z[..., 1], 0.0)[..., None] * d.W_dec[1]
    torch.testing.assert_close(edit.op.apply(x, 1.0, HERE), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(edit.op.apply(x, 1.0, HERE)[~on], x[~on])


def test_flagged_tokens_become_other_tokens_of_the_map():
    d, scores = dictionary(), planted_scores()
    (edit,) = patch_replacement(scores, "moon", dictionary=d, site="mid_block", timesteps=TIMES, seed=5)
    assert isinstance(edit.op, ReplaceFlagged)
    x = 3 * rows(50)
    new = edit.op.apply(x, 1.0, HERE)
    flagged = d.encode(x)[..., 1] > scores.mean_activation[0, 1]
    assert flagged.any() and not flagged.all()
    for sample in range(2):
        assert torch.equal(new[sample][~flagged[sample]], x[sample][~flagged[sample]])
        clean = x[sample][~flagged[sample]]
        for row in new[sample][flagged[sample]]:
            assert (clean == row).all(1).any()
        assert torch.equal(edit.op.apply(x[sample : sample + 1], 1.0, HERE)[0], new[sample])  # whatever the batch
    everywhere = ReplaceFlagged(d, [1], 0.0)
    always = (4 * d.W_dec[1]).expand(1, 9, D)
    assert everywhere.apply(always, 1.0, HERE) is always
    never = ReplaceFlagged(d, [1], 1e9)
    assert never.apply(x, 1.0, HERE) is x


def test_transport_carries_the_planted_features():
    """Orthonormal features, one in each picture's object: the change is one row for the other."""
    eye = torch.eye(8)
    d = TopKDictionary(eye, torch.zeros(8), eye, torch.zeros(8), k=8)
    source, target = torch.zeros(2, 1, 1, 6, 8), torch.zeros(2, 1, 1, 6, 8)
    source[0, 0, 0, :2, 3], source[1, 0, 0, :2, 3] = 2.0, 4.0
    target[:, 0, 0, 4:, 5] = 1.0
    inside_source, inside_target = torch.tensor([1, 1, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1])
    runs = [Patch(value, ("cond",), (999, 500)) for value in (source, target)]
    (edit,) = transport(
        runs[0], runs[1], inside_source, inside_target, dictionary=d, site="mid_block:delta", n_features=1, strength=1.0
    )
    for step in range(2):
        x = target[step, 0]
        new = edit.op.apply(x, 1.0, StepContext("s", step, (999.0, 500.0)[step]))
        torch.testing.assert_close(new, source[step, 0])  # the target's object is gone, the source's is there
    with pytest.raises(InvalidRequest, match="not empty"):
        transport(runs[0], runs[1], inside_source, torch.zeros(6), dictionary=d, site="mid_block", n_features=1)


# Dictionaries of the text encoder


def text_dictionary() -> TopKDictionary:
    """Features 0 to 15 are the channels, 16 to 31 their negatives."""
    W = torch.cat([torch.eye(16), -torch.eye(16)])
    return TopKDictionary(W.T.clone(), torch.zeros(32), W, torch.zeros(16), k=32)


def layer_rows(pipe, prompt: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    layer = pipe.text_encoder.encoder.layers[0]
    handle = layer.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    text_embedding(pipe, prompt)
    handle.remove()
    return seen[0].reshape(-1, 16)


def test_concept_steerer_subtracts_the_concepts_own_rows(tiny_pipe):
    """This dictionary reconstructs rows exactly, so lambda = -1 leaves nothing of the concept's own prompt."""
    (edit,) = concept_steerer(tiny_pipe, "a star", dictionary=text_dictionary(), site=LAYER, strength=-1.0)
    assert edit.branch == "opposite" and isinstance(edit.op, AddDirection)
    own = layer_rows(tiny_pipe, "a star")
    torch.testing.assert_close(edit.op.direction[0], own)
    with intervene(tiny_pipe, edit):
        left = layer_rows(tiny_pipe, "a star")
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-5)
    with pytest.raises(InvalidRequest, match="16 channels, the dictionary 8"):
        eye = torch.eye(8)
        concept_steerer(
            tiny_pipe, "a star", dictionary=TopKDictionary(eye, torch.zeros(8), eye, torch.zeros(8), k=8), site=LAYER
        )
    with pytest.raises(UnknownSite, match="Near matches"):
        concept_steerer(tiny_pipe, "a star", dictionary=text_dictionary(), site="text_encoder.encoder.layers.7")


def test_deactivation_selects_scales_and_gates(tiny_pipe):
    d = text_dictionary()
    (edit,) = deactivate(tiny_pipe, ["a star"], ["a moon"], dictionary=d, site=LAYER, n_features=8)
    op = edit.op
    assert isinstance(op, DeactivateFeatures)
    z = {prompt: d.encode(layer_rows(tiny_pipe, prompt)) for prompt in ("a star", "a moon")}
    top = {prompt: set(code[1:].amax(0).topk(8).indices.tolist()) for prompt, code in z.items()}
    features = sorted(top["a star"] - top["a moon"])
    assert torch.as_tensor(op.features)[0].tolist() == features
    own = layer_rows(tiny_pipe, "a star")
    edited = z["a star"].clone()
    edited[1:, features] *= -8.0
    expected = edited @ d.W_dec
    assert op.tau == pytest.approx(0.99 * float((own - expected).square().mean()), rel=1e-4)
    found = op.apply(own[None], 1.0, HERE)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0, 0], own[0])  # the start token
    quiet = own[None] * 1e-3  # hardly anything of the concept: the gate is shut
    assert op.apply(quiet, 1.0, HERE) is quiet
    both = op.apply(torch.cat([own[None], quiet]), 1.0, HERE)
    assert torch.equal(both[1], quiet[0]) and torch.equal(both[0], found[0])
    written = DeactivateFeatures(d, features, keep_error=False).apply(own[None], 1.0, HERE)
    torch.testing.assert_close(written[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidRequest, match="are all among those"):
        deactivate(tiny_pipe, ["a star"], ["a star"], dictionary=d, site=LAYER)
