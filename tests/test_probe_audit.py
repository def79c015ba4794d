"""The audit: each measure against a planted answer, and the whole of it on canvas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from probe.canvas import FACTORS, parse_caption
from probe.errors import InvalidRequest, UnknownConcept, UnknownSite
from probe.interventions import AddDirection, Intervention, Replace, TopKDictionary, ablate_features
from probe.model import load_pipeline
from probe.unlearning import negative_prompt
from probe.unlearning.attacks.canvas import canvas_task
from probe.unlearning.attacks.placeholder import word_tokens
from probe.unlearning.audit import AuditTask, audit
from probe.unlearning.audit_canvas import canvas_audit
from probe.unlearning.audit_denoising import classify_images
from probe.unlearning.audit_probe import read
from probe.unlearning.audit_recording import edited_features, record


def clusters(rng: np.random.Generator, gap: float, n: int = 40, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussians whose means are ``gap`` apart along the first axis."""
    concept, other = rng.normal(size=(2, n, d))
    concept[:, 0] += gap
    return concept, other


# Probes


def test_a_probe_reads_what_is_there_and_nothing_else():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        there = read(clusters(rng, 6.0), clusters(rng, 6.0), seed=seed)
        assert there.accuracy > 0.95 and there.low > there.null_high and there.auc > 0.98
        assert 0.25 < there.null < 0.75
        absent = read(clusters(rng, 0.0), clusters(rng, 0.0), seed=seed)
        assert absent.low <= absent.null_high and 0.3 < absent.auc < 0.7


def test_accuracy_is_what_the_gap_allows():
    """Two unit Gaussians 2 apart: the best threshold is right with probability Phi(1) = 0.841."""
    rng = np.random.default_rng(0)
    found = read(clusters(rng, 2.0, n=4000, d=3), clusters(rng, 2.0, n=4000, d=3), n_null=2)
    assert abs(found.accuracy - 0.8413) < 0.015
    assert abs(found.auc - 0.9214) < 0.015  # Phi(sqrt 2)
    assert found.low < found.accuracy < found.high < found.low + 0.04


def test_a_concept_that_was_moved_is_read_by_a_new_probe_only():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        away = 20.0 * np.eye(12)[0]
        moved = [tuple(rows - away for rows in clusters(rng, 6.0)) for _ in range(2)]
        assert read(clusters(rng, 6.0), moved[0], n_null=0).accuracy < 0.6  # type: ignore[arg-type]
        assert read(*moved, n_null=0).accuracy > 0.95  # type: ignore[arg-type]


# Recording


def test_an_added_direction_is_what_the_recording_differs_by(tiny_pipe):
    push = torch.linspace(-1.0, 2.0, 16)
    edit = Intervention("mid_block", AddDirection(push), branch="cond")
    drawn = {"steps": 3, "guidance": 2.0, "batch_size": 2}
    prompts, seeds = ["a red star", "a moon", "a cup"], [3, 4, 5]
    plain, edited = (record(tiny_pipe, e, ["mid_block"], prompts, seeds, **drawn) for e in ((), (edit,)))
    (before,), (after,) = plain.means.values(), edited.means.values()
    assert before.shape == after.shape == (3, 3, 16) and list(plain.means) == ["unet.mid_block:out"]
    np.testing.assert_allclose(after[0] - before[0], np.tile(push.numpy(), (3, 1)), atol=1e-5)  # same state, step 0
    assert edited.images.shape == (3, 16, 16, 3) and (edited.images != plain.images).any()
    alone = record(tiny_pipe, (edit,), ["mid_block"], prompts[2:], seeds[2:], **drawn)
    np.testing.assert_allclose(next(iter(alone.means.values()))[:, 0], after[:, 2], atol=1e-4)


def test_the_pipelines_own_call_is_read_where_an_edit_makes_another(tiny_pipe):
    push = AddDirection(torch.ones(16))
    first, both = (
        record(
            tiny_pipe,
            (Intervention("mid_block", push, inject=inject),),
            ["mid_block"],
            ["a star"],
            [0],
            steps=2,
            guidance=2.0,
        )
        for inject in ("x0", "both")
    )
    (a,), (b,) = first.means.values(), both.means.values()
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)  # at step 0 the states agree


def test_ablated_features_are_silent_after_the_edit(tiny_pipe):
    axes = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    sae = TopKDictionary(axes, torch.zeros(16), axes.T.contiguous(), torch.zeros(16), 16)
    edit = Intervention("mid_block", ablate_features(sae, torch.tensor([2, 5])))
    (features,) = edited_features(tiny_pipe, (edit, Intervention("up_blocks.0", AddDirection(torch.ones(16)))))
    assert features.features == (2, 5) and str(features.site) == "unet.mid_block:out"
    before, after = (
        record(tiny_pipe, e, [], ["a star"] * 2, [0, 1], steps=2, guidance=2.0, features=[features]).activity[0]
        for e in ((), (edit,))
    )
    assert (before > 0.01).all() and np.abs(after).max() < 1e-4


# Classification by denoising error, and the whole, on canvas


@pytest.fixture(scope="module")
def canvas() -> Any:
    return load_pipeline("canvas")


def read_as_moon(pipe: Any) -> tuple[Intervention, ...]:
    """A filter of the vocabulary: the word "star" is read as "moon"."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    (star,), (moon,) = word_tokens(pipe, "star"), word_tokens(pipe, "moon")
    table[star] = table[moon]
    return (Intervention("text_encoder.embeddings.token_embedding:weight", Replace(table)),)


def test_images_are_explained_by_their_word_unless_the_word_means_something_else(canvas):
    words = ["star", "moon", "fish"]
    task = canvas_task(canvas, (), "object", "star", n=1, n_references=4, steps=4)
    found = classify_images(task, words)
    assert found.accuracy(["star"] * 4) >= 0.75
    # what only steers the sampler leaves the conditional prediction alone, to the last bit
    steered = classify_images(replace(task, interventions=negative_prompt(canvas, "a star")), words)
    np.testing.assert_allclose(steered.log_posterior, found.log_posterior, atol=1e-3)
    filtered = classify_images(replace(task, interventions=read_as_moon(canvas)), words)
    np.testing.assert_allclose(filtered.log_posterior[:, 0], filtered.log_posterior[:, 1], atol=1e-6)
    with pytest.raises(InvalidRequest, match="captions that hold 'star' once each"):
        classify_images(replace(task, captions=["a fish"] * 4), words)


@pytest.mark.slow
def test_an_audit_of_a_filter_finds_the_concept_inside(canvas):
    """A negative prompt changes nothing of the conditional branch at the first step, nor of what images mean."""
    small = {"n": 10, "n_train": 6, "n_images": 4, "n_words": 3, "steps": 3, "sites": ("mid_block",), "n_null": 3}
    task = canvas_audit(canvas, negative_prompt(canvas, "a star"), "object", "star", **small)  # type: ignore[arg-type]
    told: list[tuple[str, int, int]] = []
    result = audit(task, progress=lambda *at: told.append(at))
    sites, steps, same = result.table("unedited", "unedited")
    assert sites == ["unet.mid_block:out"] and steps == [0, 1, 2]
    np.testing.assert_array_equal(same[:, 0], result.table("unedited", "edited")[2][:, 0])
    before, after = result.select("denoising")
    assert (before.tested, after.tested) == ("unedited", "edited") and before.value == after.value >= 0.75
    assert before.null <= 0.25 and result.chance == pytest.approx(1 / 3)
    assert not result.select("activity")
    assert all(row["factor"] == "object" and np.isfinite(row["value"]) for row in result.to_rows())
    assert "explained best by its word" in result.text() and "meaningless word" in result.text()
    assert {part for part, _, _ in told} >= {"edited, meaningless word", "unedited, concept images"}
    assert result.images.shape == (10, 64, 64, 3)


def test_canvas_audit_asks_for_the_concept_and_for_others(canvas):
    task = canvas_audit(canvas, (), "style", "neon", n=24, n_train=12, n_images=6)
    assert {parse_caption(p)["style"] for p in task.concept_prompts} == {"neon"}
    others = [parse_caption(p)["style"] for p in task.other_prompts]
    assert set(others) == set(FACTORS["style"]) - {"neon"}
    assert all("neon" in text for text in (*task.captions, *task.other_captions))
    assert task.words[0] == "neon" and len(set(task.words)) == 6
    assert not set(map(bytes, task.images)) & set(map(bytes, task.other_images))


def test_what_does_not_fit_is_refused(canvas):
    with pytest.raises(UnknownConcept, match="canvas has no object 'neon'"):
        canvas_audit(canvas, (), "object", "neon")
    task = canvas_audit(canvas, (), "object", "star", n=6, n_train=3, n_images=2)
    with pytest.raises(InvalidRequest, match="6 prompts of the concept, 6 others, of which 5"):
        replace(task, n_train=5)
    with pytest.raises(UnknownSite, match="middle"):
        audit(replace(task, sites=("middle",)))
    assert isinstance(task, AuditTask)
