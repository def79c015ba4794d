"""Attacks: the placeholder, the loss they minimise, and edits whose robustness is known because it was planted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_tiny_pipeline

from probe.canvas import Scene, caption, render, shipped_judge
from probe.errors import EmptyPrompts, InvalidRequest, UnsupportedPipeline
from probe.interventions import (
    AddDirection,
    Intervention,
    Replace,
    ScaleFeatures,
    TopKDictionary,
    intervene,
    random_control,
)
from probe.interventions.timed_dictionary import Predictor, TimedDictionary
from probe.model import PipelineEps, load_pipeline
from probe.model.eps_model import noised
from probe.unlearning.attacks import (
    ATTACKS,
    AttackTask,
    EmbeddingBudget,
    TokenBudget,
    embedding,
    floor,
    held_out,
    paraphrase,
    token_search,
    untrained,
)
from probe.unlearning.attacks.loss import Batch, DenoisingLoss
from probe.unlearning.attacks.placeholder import occurrences, substituted, word_tokens
from probe.unlearning.attacks.task import spending
from probe.unlearning.attacks.token_search import single_words

TABLE = "text_encoder.embeddings.token_embedding:weight"


def tiny_task(pipe: Any, interventions=(), **changes: Any) -> AttackTask:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "prompts": ["a red star", "a blue star"],
        "seeds": [0, 1],
        "references": rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8),
        "steps": 4,
        "guidance": 2.0,
        "captions": ["a red star", "a green star", "a star"],
    }
    return AttackTask(pipe, interventions, "object", "star", **(fields | changes))


# What a task must be


def test_a_task_that_does_not_fit_is_refused(tiny_pipe):
    with pytest.raises(EmptyPrompts, match="no prompts"):
        tiny_task(tiny_pipe, prompts=[], seeds=[])
    with pytest.raises(InvalidRequest, match="1 seeds; expected 2"):
        tiny_task(tiny_pipe, seeds=[0])
    with pytest.raises(InvalidRequest, match="2 captions; expected 3"):
        tiny_task(tiny_pipe, captions=["a star"] * 2)
    with pytest.raises(InvalidRequest, match="float64; expected uint8"):
        tiny_task(tiny_pipe, references=np.zeros((1, 16, 16, 3)))
    with pytest.raises(InvalidRequest, match="does not hold the word 'star'"):
        embedding(tiny_task(tiny_pipe, prompts=["a red moon", "a star"]))
    with pytest.raises(InvalidRequest, match="no caption of canvas"):
        paraphrase(tiny_task(tiny_pipe))
    with pytest.raises(InvalidRequest, match="canvas has no object 'thing'"):
        held_out(replace(tiny_task(tiny_pipe), label="thing"))


# Placeholders


def test_occurrences_are_of_the_whole_sequence():
    ids = torch.tensor([[9, 1, 2, 3, 1, 2], [1, 9, 2, 1, 2, 9], [5, 5, 5, 5, 5, 5]])
    assert occurrences(ids, [1, 2]).tolist() == [[-1, 0, 1, -1, 0, 1], [-1, -1, -1, 0, 1, -1], [-1] * 6]
    assert occurrences(ids, [3]).tolist()[0] == [-1, -1, -1, 0, -1, -1]
    assert (occurrences(ids, range(7)) == -1).all()


def test_the_words_own_vectors_change_nothing_and_other_vectors_only_the_word(tiny_pipe):
    tokens = word_tokens(tiny_pipe, "star")
    table = tiny_pipe.text_encoder.get_input_embeddings()
    own = table.weight[list(tokens)].clone()
    ids = torch.tensor([tiny_pipe.tokenizer("a red star in neon").input_ids])
    plain = table(ids)
    with substituted(tiny_pipe, tokens, own):
        assert torch.equal(table(ids), plain)
    with substituted(tiny_pipe, tokens, own + 1.0):
        moved = table(ids)
    assert torch.equal(table(ids), plain)  # the hook is gone
    where = (occurrences(ids, tokens) >= 0)[0]
    assert where.sum() == len(tokens)
    torch.testing.assert_close(moved[0, where], own + 1.0)
    assert torch.equal(moved[0, ~where], plain[0, ~where])


# The loss


def test_the_loss_is_the_velocity_error_of_the_denoiser(tiny_pipe):
    task = tiny_task(tiny_pipe)
    model, texts = PipelineEps(tiny_pipe), list(task.captions)
    noise = torch.randn(3, *model.sample_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.eps(noise, 0.0, texts)  # a condition that is met first sets the scheduler anew
    loss = DenoisingLoss(task)
    for step in (1, 3):
        t = int(tiny_pipe.scheduler.timesteps[step])
        abar = float(tiny_pipe.scheduler.alphas_cumprod[t])
        log_snr = float(np.log(abar) - np.log1p(-abar))
        with torch.no_grad(), intervene(tiny_pipe, ()):
            found = loss(texts, Batch((0, 1, 2), loss.x0, noise, step))
            z = noised(loss.x0, noise, log_snr)
            eps = model.eps(z, log_snr, texts)
        # |v - vhat|^2 = |n - eps|^2 / signal^2
        expected = (noise - eps).square().flatten(1).mean(1) / abar
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_the_loss_sees_every_kind_of_edit():
    pipe = build_tiny_pipeline()
    push = torch.linspace(-3.0, 3.0, 16)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    weight = pipe.unet.mid_block.resnets[0].conv1.weight
    edits = {
        "denoiser": Intervention("mid_block", AddDirection(push)),
        "prompt": Intervention("unet:prompt", AddDirection(push), branch="cond"),
        "text": Intervention("text_encoder.encoder.layers.0", AddDirection(push)),
        "weight": Intervention("unet.mid_block.resnets.0.conv1:weight", Replace(torch.zeros_like(weight).flatten(1))),
        "x_t": Intervention("sampler:x_t", AddDirection(torch.ones(4))),
        "eps": Intervention("sampler:eps", AddDirection(torch.ones(4))),
        "x0": Intervention("sampler:x0", AddDirection(torch.ones(4))),
        "uncond": Intervention("mid_block", AddDirection(push), branch="uncond"),
        "opposite": Intervention("mid_block", AddDirection(push), branch="opposite"),
    }
    tokens = word_tokens(pipe, "star")
    for name, item in edits.items():
        values, slopes = [], []
        for given in ((), (item,)):
            loss = DenoisingLoss(tiny_task(pipe, given))
            assert loss.branches == (("uncond", "cond") if given and name in ("uncond", "opposite") else ("cond",))
            vectors = pipe.text_encoder.get_input_embeddings().weight[list(tokens)].clone().requires_grad_(True)
            with intervene(pipe, given), substituted(pipe, tokens, vectors):
                value = loss(["a red star"], Batch((0, 1, 2), loss.x0, noise, 1)).mean()
            values.append(float(value.detach()))
            slopes.append(torch.autograd.grad(value, vectors)[0])
        assert values[0] != values[1], name
        assert bool((slopes[1] != 0).any()), name
        if name in ("x_t", "eps", "x0"):
            continue
        assert not torch.equal(*slopes), name


def test_a_constant_clean_sample_has_the_loss_on_paper(tiny_pipe):
    """An edit that sets the predicted clean sample to 1 everywhere: L = mean (x0 - 1)^2 / noise^2."""
    task = tiny_task(tiny_pipe, (Intervention("sampler:x0", Replace(torch.ones(64, 4))),))
    loss = DenoisingLoss(task)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), intervene(tiny_pipe, task.interventions):
        found = loss(["a star"], Batch((0, 1, 2), loss.x0, noise, 2))
    abar = float(tiny_pipe.scheduler.alphas_cumprod[int(tiny_pipe.scheduler.timesteps[2])])
    expected = (loss.x0 - 1.0).square().flatten(1).mean(1) / (1.0 - abar)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_sampler_edits_need_a_sampler_that_can_be_followed():
    from diffusers import DDPMScheduler

    pipe: Any = build_tiny_pipeline()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UnsupportedPipeline, match="DDIM"):
        DenoisingLoss(tiny_task(pipe, (Intervention("sampler:x0", AddDirection(torch.ones(4))),)))


def test_dictionaries_that_read_the_step_before_are_refused_before_any_work(tiny_pipe):
    core = TopKDictionary(torch.eye(16), torch.zeros(16), torch.eye(16), torch.zeros(16), 4)
    residual = Predictor(torch.zeros(3, 16, 16), torch.zeros(3, 16))
    sae = TimedDictionary((core,), torch.tensor([-2.0, 0.0, 2.0]), (0, 0, 0), predictor=residual)
    edit = Intervention("mid_block", ScaleFeatures(sae, torch.tensor([1])))
    with pytest.raises(InvalidRequest, match="reads each step after the one before"):
        DenoisingLoss(tiny_task(tiny_pipe, (random_control(edit),)))


def test_an_edit_that_overwrites_the_prompt_is_told():
    pipe = build_tiny_pipeline()
    away = Intervention("unet:prompt", Replace(torch.zeros(32, 16)), branch="cond")
    for attack, budget in ((embedding, EmbeddingBudget(2, 2, restarts=1)), (token_search, TokenBudget(2, 1))):
        with pytest.raises(InvalidRequest, match="no gradient comes from the image"):
            attack(tiny_task(pipe, (away,)), budget)  # type: ignore[operator]


# Attacks as a whole


def test_every_attack_draws_as_many_images_counts_its_cost_and_leaves_the_model_alone(tiny_pipe):
    before = tiny_pipe.text_encoder.get_input_embeddings().weight.clone()
    task = tiny_task(
        tiny_pipe,
        (Intervention("mid_block", AddDirection(torch.ones(16))),),
        paraphrases=["the star red", "the star blue"],
        held_out=["a neon star"],
    )
    small = {"embedding": EmbeddingBudget(3, 2, restarts=2, validation=1), "token_search": TokenBudget(2, 2, 3)}
    spent = {
        "paraphrase": 16,
        "held_out": 16,
        "embedding": 16 + 2 * 3 * 2 + 3 * 4,
        "token_search": 16 + 9 + 2 * 4 * 9 + 18,
    }
    for name, attack in ATTACKS.items():
        told: list[tuple[int, int]] = []
        given = (small[name],) if name in small else ()
        watched = replace(task, progress=lambda *at: told.append(at))  # noqa: B023
        result = attack(watched, *given)  # type: ignore[call-arg]
        assert result.name == name and result.images.shape == (2, 16, 16, 3) and result.images.dtype == np.uint8
        assert result.evaluations == spent[name], name
        if name in small:
            assert told[-1][0] == told[-1][1]
        if result.prompts is not None:  # text attacks can be typed: drawing the prompts gives the same images
            np.testing.assert_array_equal(task.draw(result.prompts), result.images)
        assert torch.equal(tiny_pipe.text_encoder.get_input_embeddings().weight, before)
        assert not tiny_pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_attacks_repeat(tiny_pipe):
    task, budget = tiny_task(tiny_pipe), EmbeddingBudget(3, 2, restarts=1, validation=1, seed=4)
    first, second = embedding(task, budget), embedding(task, budget)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.detail == second.detail


def test_the_search_lowers_its_own_loss(tiny_pipe):
    for seed in range(3):
        history = token_search(tiny_task(tiny_pipe), TokenBudget(2, 2, 3, images=2, n_steps=2, seed=seed)).detail[
            "losses"
        ]
        assert all(later <= earlier for earlier, later in pairwise(history))


def test_single_words_are_read_as_they_were_found(canvas):
    words = single_words(canvas)
    assert {"star", "moon", "neon"} <= set(words.values())
    for i, word in list(words.items())[::7]:
        assert canvas.tokenizer(f"a {word} thing", add_special_tokens=False).input_ids[1] == i


# Planted answers on canvas


@pytest.fixture(scope="module")
def canvas() -> Any:
    return load_pipeline("canvas")


def star_task(pipe: Any, interventions, seed: int = 0, *, shown: str = "star", n: int = 6) -> AttackTask:
    """Six prompts; real renders as references, captioned as if they showed a star."""
    colours, styles = ("red", "blue", "green", "cyan"), ("flat", "clay", "pixel", "sketch", "hatch")
    scenes = [Scene(shown, styles[i % 5], colours[i % 4], ("white", "dark")[i % 2], size=1.0) for i in range(10)]
    names = [
        {"object": "star", "style": styles[i % 5], "colour": colours[i % 4], "background": "white"} for i in range(n)
    ]
    return AttackTask(
        pipe,
        interventions,
        "object",
        "star",
        [caption(item) for item in names],
        [1000 * seed + i for i in range(n)],
        np.stack([render(scene, i).image for i, scene in enumerate(scenes)]),
        steps=6,
        guidance=2.0,
        captions=[caption(scene).replace(shown, "star") for scene in scenes],
    )


def stars(images: np.ndarray) -> float:
    verdict = shipped_judge()(images)
    return float(((verdict.labels("object") == "star") & ~verdict.is_artifact).mean())


def renamed(pipe: Any) -> Intervention:
    """A filter of the vocabulary: the word "star" is read as "moon". The model itself is whole."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    (star,), (moon,) = word_tokens(pipe, "star"), word_tokens(pipe, "moon")
    table[star] = table[moon]
    return Intervention(TABLE, Replace(table))


def test_a_filter_of_words_hides_the_concept_and_the_attack_finds_it(canvas):
    task = star_task(canvas, (renamed(canvas),))
    assert stars(task.draw(task.prompts)) == 0.0
    found = embedding(task, EmbeddingBudget(8, 4, restarts=1, validation=1))
    assert stars(found.images) >= 0.8
    assert stars(untrained(task, seed=1).images) <= 0.2


def test_where_the_concept_is_gone_for_every_text_the_attack_fails(canvas):
    """Keys and values that read nothing of the text: no embedding can ask for anything."""
    weights = {
        name: module.weight
        for name, module in canvas.unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        edits = tuple(
            Intervention(f"unet.{name}:weight", Replace(weight.std() * torch.randn(weight.shape, generator=draw)))
            for name, weight in weights.items()
        )
        task = star_task(canvas, edits, seed)
        assert stars(embedding(task, EmbeddingBudget(8, 4, restarts=1, validation=1, seed=seed)).images) <= 0.35


def test_references_of_another_concept_bring_that_concept(canvas):
    task, fish = star_task(canvas, (renamed(canvas),)), star_task(canvas, (), shown="fish")
    result = floor(
        lambda t: embedding(t, EmbeddingBudget(16, 4, restarts=1, validation=1)), task, fish.references, fish.captions
    )
    assert stars(result.images) <= 0.35
    with pytest.raises(InvalidRequest, match="does not name 'star'"):
        floor(embedding, task, fish.references, ["a fish"] * 10)


def test_wordings_are_followed_by_the_unedited_model(canvas):
    task = star_task(canvas, ())
    for attack in (paraphrase, held_out):
        result = attack(task)
        assert len(set(result.prompts or ())) > 1 and not set(result.prompts or ()) & set(task.prompts)
        assert all("star" in prompt for prompt in result.prompts or ())
        assert stars(result.images) >= 0.8


def test_spending_counts_rows(tiny_pipe):
    with spending(tiny_pipe) as spent:
        tiny_task(tiny_pipe).draw(["a red star", "a blue star"])
    assert spent.evaluations == 2 * 2 * 4
