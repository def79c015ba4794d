"""Interventions on features of every architecture and option: codes, edits, recipes, generations."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_options import LEVELS, TIMES, made, rows

from probe.errors import InvalidIntervention
from probe.interventions import (
    AddDirection,
    ClampFeatures,
    Intervention,
    Recipe,
    ScaleFeatures,
    SetFeatures,
    StepContext,
    ablate_features,
    add_feature,
    as_dictionary,
    intervene,
)
from probe.interventions.dictionary import (
    ThresholdDictionary,
    TimedDictionary,
    TopKDictionary,
    UnitNormDictionary,
    dictionary_of,
    dictionary_record,
    feature_codes,
)
from probe.model.schedule import schedule
from sae import SAEConfig, make_sae
from sae.architectures.crosscoder import direction
from sae.architectures.timed import TimedSAE
from sae.config import ARCHITECTURES, INPUTS
from sae.interchange.standardised import StandardisedSAE

D, M = 6, 24
OPTIONS = [
    *((a, i, "shared") for a, i in itertools.product(ARCHITECTURES, INPUTS)),
    *((a, "raw", t) for a, t in itertools.product(ARCHITECTURES, TIMES) if (a, t) != ("relu", "film")),
    ("topk", "whitened", "film"),
    ("jumprelu", "centred", "film"),
    ("batchtopk", "whitened", "residual"),
    ("topk", "unit", "per_step"),
]


def plain(architecture: str, kind: str, time: str) -> Any:
    """A float32 dictionary with its options folded in, as training hands it out."""
    return made(architecture, input=kind, time=time).float().folded()


def at(sae: Any, level: int, before: torch.Tensor) -> Any:
    """The dictionary of a step."""
    return sae.at(LEVELS[level], before if level else None) if isinstance(sae, TimedSAE) else sae


def here(level: int) -> StepContext:
    return StepContext("unet.mid_block:out", level, 0.0, LEVELS[level], "cond")


@pytest.mark.parametrize(("architecture", "kind", "time"), OPTIONS)
def test_edits_are_those_of_the_trained_dictionary(architecture: str, kind: str, time: str) -> None:
    sae = plain(architecture, kind, time)
    maps = rows(D, 4 * 2 * 5, seed=8).float().view(4, 2, 5, D)
    codes = [at(sae, t, maps[t - 1]).encode(maps[t]).detach() for t in range(4)]
    features = torch.stack(codes).sum((0, 1, 2)).topk(4).indices
    scale = ScaleFeatures(sae, features, -2.0)
    put = SetFeatures(as_dictionary(sae), features, 1.5)
    nothing = ScaleFeatures(sae, features, 1.0)
    for t, x in enumerate(maps):
        z, directions = codes[t], at(sae, t, maps[t - 1]).directions.detach()[features]
        expected = x + (-3 * z[..., features]) @ directions
        torch.testing.assert_close(scale.apply(x, 1.0, here(t)), expected, rtol=1e-3, atol=1e-3)
        expected = x + (1.5 - z[..., features]) @ directions
        torch.testing.assert_close(put.apply(x, 1.0, here(t)), expected, rtol=1e-3, atol=1e-3)
        assert nothing.apply(x, 1.0, here(t)) is x
        off = (z[..., features] == 0).all(-1)
        assert torch.equal(scale.apply(x, 1.0, here(t))[off], x[off])  # bit for bit where no code changes


@pytest.mark.parametrize(("architecture", "kind", "time"), OPTIONS)
def test_recipes_keep_them(architecture: str, kind: str, time: str) -> None:
    sae = plain(architecture, kind, time)
    kept: dict[str, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> str:
        kept[f"t{len(kept)}"] = tensor.detach().clone()
        return f"t{len(kept) - 1}"

    again = dictionary_of(dictionary_record(sae, pack), kept.__getitem__)
    kinds = {"topk": TopKDictionary} if kind != "unit" else {}
    expected = TimedDictionary if time != "shared" else kinds.get(architecture, ThresholdDictionary)
    assert isinstance(again, UnitNormDictionary if (kind, time) == ("unit", "shared") else expected)
    x, before = rows(D, 12, seed=2).float(), rows(D, 12, seed=3).float()
    for level in range(len(LEVELS)):
        one = at(sae, level, before)
        other = again.at(LEVELS[level], before) if isinstance(again, TimedDictionary) else again
        z = one.encode(x).detach()
        torch.testing.assert_close(other.encode(x), z, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.decode(z), one.decode(z).detach(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.W_dec, one.directions.detach(), rtol=1e-3, atol=1e-3)
        few = torch.arange(0, M, 5)
        found = feature_codes(other, x, few, torch.zeros(len(few)))
        torch.testing.assert_close(found, z[:, few], rtol=1e-3, atol=1e-3)


def test_film_between_the_levels_of_training() -> None:
    sae = plain("topk", "whitened", "film")
    x = rows(D, 12, seed=2).float()
    torch.testing.assert_close(as_dictionary(sae).at(-0.7).encode(x), sae.at(-0.7).encode(x), rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]


def test_residual_needs_the_step_before() -> None:
    sae = plain("topk", "raw", "residual")
    x = rows(D, 10).float().view(2, 5, D)
    op = SetFeatures(sae, [1], 2.0)
    with pytest.raises(InvalidIntervention, match="reads each step after the one before, and met step 2"):
        op.apply(x, 1.0, here(2))
    op.apply(x, 1.0, here(0))
    with pytest.raises(InvalidIntervention, match="met step 2"):
        op.apply(x, 1.0, here(2))
    op.apply(x, 1.0, here(0))
    op.apply(x + 1, 1.0, here(1))
    op.apply(x, 1.0, here(0))  # another generation
    with pytest.raises(InvalidIntervention, match="met step 1"):
        op.apply(x[:1], 1.0, here(1))


def test_unknown_noise_level_is_refused() -> None:
    op = SetFeatures(plain("topk", "raw", "film"), [1], 2.0)
    with pytest.raises(InvalidIntervention, match="noise level of this step is not known"):
        op.apply(rows(D, 10).float().view(2, 5, D), 1.0, StepContext("s", 0, 0.0))


def test_wrong_codes_are_refused() -> None:
    class Doubled:
        """Says it is a plain TopK autoencoder and is not."""

        def __init__(self) -> None:
            self.inner = made("topk").float()
            self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.k = (
                getattr(self.inner, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "k")
            )

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner.encode(x)  # type: ignore[union-attr]

    with pytest.raises(InvalidIntervention, match="does not compute the code"):
        as_dictionary(Doubled())


@pytest.mark.parametrize("time", TIMES)
def test_in_a_generation(time: str, tiny_pipe: Any, tmp_path: Path) -> None:
    """An edit that changes nothing leaves the image bit for bit; a recipe repeats what its dictionary did."""
    levels = tuple(max(-30.0, level) for level in schedule(tiny_pipe, 4)[1])

    def generate() -> Any:
        seed = torch.Generator().manual_seed(0)
        return tiny_pipe("a star", num_inference_steps=4, output_type="np", generator=seed, guidance_scale=2.0).images

    sae = made("topk", d=16, m=48, k=6, time=time, levels=levels).float()
    before = generate()
    with intervene(tiny_pipe, Intervention("mid_block", ScaleFeatures(sae, list(range(24)), 1.0))):
        assert (generate() == before).all()
    edit = Intervention("mid_block", SetFeatures(sae, list(range(48)), 5.0), branch="cond")
    with intervene(tiny_pipe, edit):
        first, second = generate(), generate()
    assert not (first == before).all()
    assert (first == second).all()
    Recipe.of(tiny_pipe, [edit]).save(tmp_path / "recipe")
    with intervene(tiny_pipe, Recipe.load(tmp_path / "recipe", tiny_pipe).interventions):
        assert (generate() == first).all()


def test_rows_standardised_one_by_one() -> None:
    """Dictionaries of other libraries: edits are exact also of the codes that undo the standardisation; in recipes."""
    core = plain("topk", "raw", "shared")
    sae = StandardisedSAE(core)
    held = as_dictionary(sae)
    x = 3 * rows(D, 40, seed=8).float().view(4, 10, D) - 1
    z = sae.encode(x).detach()
    torch.testing.assert_close(held.encode(x), z)
    torch.testing.assert_close(held.decode(z), sae.decode(z))
    common = z[..., :M].sum((0, 1)).topk(4).indices
    for features in (common, torch.tensor([int(common[0]), M, M + 2])):
        found = feature_codes(held, x, features, torch.zeros(len(features)))
        torch.testing.assert_close(found, z[..., features])
        changed = ScaleFeatures(sae, features, -2.0).apply(x, 1.0, here(0))
        edited = z.clone()
        edited[..., features] *= -2
        torch.testing.assert_close(changed - x, sae.decode(edited) - sae.decode(z), rtol=1e-4, atol=1e-4)
    tensors: dict[str, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> str:
        tensors[str(len(tensors))] = tensor
        return str(len(tensors) - 1)

    again = dictionary_of(dictionary_record(sae, pack), tensors.__getitem__)
    torch.testing.assert_close(again.encode(x), z)


def test_a_crosscoder_is_refused_with_the_way_out() -> None:
    """It reads sites that an edit does not see; its directions at one of them can be added."""
    config = SAEConfig(5, 8, 2, blocks=(("unet.a:out", None, 2), ("unet.b:out", None, 3)))
    sae = make_sae(config)
    for edit in (ScaleFeatures, SetFeatures, ClampFeatures, ablate_features, add_feature):
        with pytest.raises(InvalidIntervention, match=r"a crosscoder over unet.a:out, unet.b:out; .* direction at a"):
            edit(sae, 3)  # type: ignore[operator]
    AddDirection(direction(sae, 3, "unet.b:out"))
