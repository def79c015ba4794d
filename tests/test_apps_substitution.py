"""Dictionaries in place of a site's rows: known answers, and the numbers by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from apps.dictionaries.splice import Splice, reconstruction
from apps.dictionaries.substitution import accuracy_kept, judged, substitute
from apps.errors import InvalidOption
from probe.capture import resolve_sites
from probe.errors import InvalidIntervention
from probe.interventions import Intervention
from probe.interventions.ops import StepContext
from probe.model import denoiser, generate
from sae import SAEConfig, TopKSAE, make_sae
from sae.architectures.timed import TimedSAE

PROMPTS, SEEDS = ["a red star", "the blue moon", "a cup"], [5, 6, 7]
SITE, OTHER = "unet.mid_block:out", "unet.up_blocks.0:out"


class Stand:
    """A dictionary that puts out what it is told to."""

    def __init__(self, output: Any) -> None:
        self.config = SAEConfig(d_in=16, d_sae=1, k=1, site=SITE)
        self._output = output

    def encode_sparse(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode_sparse(self, code: torch.Tensor) -> torch.Tensor:
        return self._output(code)


def run(pipe: Any, dictionaries: dict[str, Any], **options: Any):
    return substitute(pipe, dictionaries, PROMPTS, SEEDS, steps=3, guidance=2.0, batch_size=2, **options)


def test_a_perfect_dictionary_recovers_everything_and_changes_nothing(tiny_pipe: Any) -> None:
    seen: list[tuple[int, int]] = []
    found = run(tiny_pipe, {SITE: Stand(lambda x: x)}, progress=lambda *at: seen.append(at))
    site = found.sites[SITE]
    for ablation in ("mean", "zero"):
        assert site.recovered(ablation) == (1.0, 1.0, 1.0)
        assert site.recovered(ablation, [1]).value == 1.0
        assert site.loss[ablation].min() > 0
    np.testing.assert_array_equal(site.images["sae"], found.clean)
    plain = generate(tiny_pipe, PROMPTS, SEEDS, steps=3, guidance=2.0, batch_size=2)
    np.testing.assert_array_equal(found.clean, plain)
    assert site.change(found.clean, "zero") > site.change(found.clean, "sae") == 0
    assert seen == [(i + 1, 48) for i in range(48)]  # 3 steps, 2 batches, 1 + 4 + 3 calls


def test_an_ablation_recovers_nothing_of_itself(tiny_pipe: Any) -> None:
    zero = run(tiny_pipe, {SITE: Stand(torch.zeros_like)}, images=False).sites[SITE]
    assert zero.recovered("zero") == (0.0, 0.0, 0.0)
    assert zero.images == {}
    rows: dict[int, list[torch.Tensor]] = {}

    def record(x: torch.Tensor, context: Any) -> torch.Tensor:
        rows.setdefault(context.step, []).append(x.reshape(-1, 16))
        return x

    generate(tiny_pipe, PROMPTS, SEEDS, steps=3, guidance=2.0, batch_size=2,
             interventions=[Intervention(SITE, Splice(record))])  # fmt: skip
    first = torch.cat(rows[0]).double().mean(0).float()
    mean = run(tiny_pipe, {SITE: Stand(lambda x: first.expand(x.shape))}, images=False).sites[SITE]
    assert mean.recovered("mean", [0]).value == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(mean.loss["sae"][:, 0], mean.loss["mean"][:, 0], rtol=1e-4)
    assert mean.recovered("mean", [1, 2]).value < 0  # the mean of another step


def test_the_loss_is_the_difference_of_two_denoiser_calls(tiny_pipe: Any) -> None:
    """At step 0 an edited generation has the same x_t as the unedited one."""
    outputs: list[torch.Tensor] = []
    handle = denoiser(tiny_pipe)[1].register_forward_hook(lambda m, a, out: outputs.append(out[0].clone()))
    try:
        edit = Intervention(SITE, Splice(lambda x, context: torch.zeros_like(x)))
        for edits in ((), (edit,)):
            generate(tiny_pipe, PROMPTS[:2], SEEDS[:2], steps=3, guidance=2.0, batch_size=2, interventions=edits)
    finally:
        handle.remove()
    difference = (outputs[3] - outputs[0]).double().square().flatten(1).mean(1)
    found = run(tiny_pipe, {SITE: Stand(lambda x: x)}, images=False)
    expected = difference.view(2, 2).mean(0).numpy()  # unconditional halves first
    np.testing.assert_allclose(found.sites[SITE].loss["zero"][:2, 0], expected, rtol=1e-5)
    # Velocity prediction: eps = signal v + noise z, and at zero terminal SNR no error of v reaches eps.
    alphas = tiny_pipe.scheduler.alphas_cumprod[tiny_pipe.scheduler.timesteps]
    ratio = found.sites[SITE].eps_loss["zero"] / found.sites[SITE].loss["zero"]
    np.testing.assert_allclose(ratio, np.broadcast_to(alphas.numpy(), ratio.shape), atol=1e-6)


def test_several_sites_and_chosen_steps(tiny_pipe: Any) -> None:
    sites = [str(s) for s in resolve_sites(tiny_pipe, [SITE, OTHER])]
    random = TopKSAE(SAEConfig(16, 32, 2, site=OTHER), seed=1)
    found = run(tiny_pipe, {sites[0]: Stand(lambda x: x), sites[1]: random}, at_steps=[2])
    assert found.at_steps == (2,)
    assert len(found.log_snr) == 3
    assert found.sites[SITE].recovered("zero").value == 1.0
    other = found.sites[OTHER]
    assert -5 < other.recovered("mean").value < 1
    last = run(tiny_pipe, {OTHER: random})
    np.testing.assert_array_equal(other.loss["sae"], last.sites[OTHER].loss["sae"])
    assert 0 < other.change(found.clean, "zero") != last.sites[OTHER].change(last.clean, "zero")
    with torch.no_grad():
        x = torch.randn(2, 5, 16)
        timed = make_sae(SAEConfig(16, 32, 2, site=OTHER, time="per_step", levels=(-6.0, 0.0), groups=(0, 1)), seed=3)
        assert isinstance(timed, TimedSAE)
        now = reconstruction(timed)(x, StepContext(OTHER, 0, 999.0, float("-inf")))
        torch.testing.assert_close(now, timed.at(-6.0).decode(timed.at(-6.0).encode(x)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reconstruction(random)(x, None), random(x), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


def test_accuracy_kept_is_a_ratio_over_the_same_prompts() -> None:
    clean = judged({"object": ["a", "b", "c", "d"]}, {"object": ["a", "b", "c", "x"], "style": ["?"] * 4})
    assert clean.tolist() == [True, True, True, False]
    kept = accuracy_kept(clean, np.array([True, False, True, False]))
    assert kept.value == pytest.approx(2 / 3)
    assert kept.low < kept.value < kept.high
    assert accuracy_kept(clean, clean) == (1.0, 1.0, 1.0)
    assert np.isnan(accuracy_kept(~clean & clean, clean).value)


def test_what_cannot_be_measured_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(InvalidOption, match="at least one dictionary"):
        run(tiny_pipe, {})
    with pytest.raises(InvalidIntervention, match="not saved"):
        Splice(lambda x, c: x).to_record(lambda t: "")
    with pytest.raises(InvalidIntervention, match="cannot hold"):
        Splice.from_record({}, lambda name: torch.zeros(1))
    residual = Stand(lambda x: x)
    residual.READS_PREVIOUS = True  # type: ignore[attr-defined]
    with pytest.raises(InvalidOption, match="of the step before"):
        run(tiny_pipe, {SITE: residual})
