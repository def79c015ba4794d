"""One image through all features: known answers on a planted dictionary, and a recorded prompt drawn again."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_apps_dashboard_run import D_SAE, N_STEPS, PEAKS, SIDE, SITE, planted_values

from apps.errors import InvalidOption
from apps.inspecting import Codes, Corpus, Region, compare, drawn_codes, measure, ranked, recorded_codes
from apps.inspecting.ranking import SORTS, surprise

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from apps.inspecting.drawing import Request
    from sae import FeatureBundle

ALL = np.ones(D_SAE, bool)


# --- regions -------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_region_is_read_as_it_is_written(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    cells = data.draw(
        st.lists(st.tuples(st.integers(0, grid[0] - 1), st.integers(0, grid[1] - 1)), min_size=1, max_size=4)
    )
    region = Region.around(grid, cells)
    assert Region.parse(str(region), grid) == region
    assert {row * grid[1] + column for row, column in cells} <= set(region.tokens.tolist())
    assert (
        len(region.tokens)
        == np.ptp(region.rows) * np.ptp(region.columns) + np.ptp([*region.rows]) + np.ptp([*region.columns]) + 1
    )


@pytest.mark.parametrize("text", ["", "8,0", "0-8,0", "3-1,0", "a", "0", "0,0,0", "-1,0", "٣,0", "0,0\n;", "9" * 30])
def test_a_wrong_region_is_told(text: str) -> None:
    with pytest.raises(InvalidOption, match="rows 0 to 7 and columns 0 to 7 such as 0-7,0-7"):
        Region.parse(text, (8, 8))


# --- measures ------------------------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    """Two steps, two cells, two slots, four features; feature 3 is dead in the corpus."""
    values = np.array([[[2.0, 0.0], [0.0, 0.0]], [[6.0, 1.0], [2.0, 3.0]]], np.float32)
    features = np.array([[[0, 0], [0, 0]], [[0, 1], [0, 3]]], np.int32)
    codes = Codes(values, features, 4, (1, 2))
    corpus = Corpus(np.array([[0.0, 0.0, 1.0, 0.0], [4.0, 0.0, 1.0, 0.0]]), np.array([8.0, 1.0, 2.0, 0.0]))
    found = measure(codes, np.array([0, 1]), 1, corpus)
    np.testing.assert_allclose(found.mean, [4.0, 0.5, 0.0, 1.5])
    np.testing.assert_allclose(found.by_step[0], [1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(found.activation, [6.0, 1.0, 0.0, 3.0])
    np.testing.assert_allclose(found.share, [4 / 6, 0.5 / 6, 0.0, 1.5 / 6])
    np.testing.assert_array_equal(found.first, [0, 1, -1, 1])
    np.testing.assert_allclose(
        found.surprise, [0.0, math.log2(0.51 / 0.01), math.log2(0.02 / 1.02), math.log2(101)], rtol=1e-6
    )
    assert ranked(found, "activation", ALL[:4]).tolist() == [0, 3, 1]
    assert ranked(found, "share", ALL[:4]).tolist() == [0, 3, 1]
    assert ranked(found, "surprise", ALL[:4]).tolist() == [3, 1, 0]
    assert ranked(found, "surprise", np.array([True, False, True, True])).tolist() == [3, 0]
    np.testing.assert_array_equal(codes.maps(0), [[[2.0, 0.0]], [[6.0, 2.0]]])
    one = measure(codes, np.array([1]), 0, corpus)
    assert ranked(one, "share", ALL[:4]).size == 0
    assert not one.share.any()


_level = st.just(0.0) | st.floats(1e-6, 1e4)


@given(_level, _level, _level)
@settings(max_examples=200, deadline=None)
def test_surprise_is_bounded(mean: float, corpus: float, p99: float) -> None:
    """Finite always, at most log2(101) bits, and no surprise where the corpus has the same."""
    bits = surprise(np.array([mean]), np.array([corpus]), np.array([p99]))[0]
    assert np.isfinite(bits)
    assert bits <= math.log2(101) + 1e-9
    same = surprise(np.array([min(mean, p99)]), np.array([min(mean, p99)]), np.array([p99]))[0]
    assert same == 0.0


def test_compared_lists_share_nothing() -> None:
    found = compare(np.array([5.0, 1.0, 0.0, 2.0, 0.0]), np.array([1.0, 3.0, 4.0, 0.0, 0.0]), ALL[:5])
    assert [part.tolist() for part in found] == [[0, 1], [3], [2]]
    hidden = compare(np.array([5.0, 2.0]), np.array([0.0, 2.0]), np.array([False, True]))
    assert [part.tolist() for part in hidden] == [[1], [], []]


# --- a planted dictionary ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(planted: Path) -> tuple[ActivationStore, Any, FeatureBundle]:
    from activations_store import ActivationStore
    from sae import FeatureBundle, load_sae

    return (
        ActivationStore.open(planted / "store"),
        load_sae(planted / "sae" / "mid_block"),
        FeatureBundle.open(planted / "bundle" / "mid_block"),
    )


@pytest.mark.parametrize("sample", [0, 17])
def test_the_planted_features_come_first_where_they_are(
    opened: tuple[ActivationStore, Any, FeatureBundle], sample: int
) -> None:
    """Object and colour under the object's mask, background outside, style everywhere; each at its own time."""
    store, sae, bundle = opened
    label = {factor: str(store.labels(factor)[sample]) for factor in PEAKS}
    feature = {factor: planted_values().index((factor, value)) for factor, value in label.items()}
    codes = recorded_codes(store, sae, sample, steps=bundle.steps, branch="cond")
    assert codes.grid == (SIDE, SIDE)
    assert codes.values.shape[:2] == (N_STEPS, SIDE * SIDE)
    where = codes.maps(feature["object"])[4].ravel()
    inside, outside = np.flatnonzero(where > 5.0), np.flatnonzero(where == 0.0)
    late = measure(codes, inside, 4, Corpus.of(bundle))
    assert set(ranked(late, "share", ALL)[:2]) == {feature["object"], feature["style"]}
    assert ranked(late, "surprise", ALL)[0] == feature["object"]
    assert ranked(late, "activation", ALL)[0] == feature["object"]
    early = measure(codes, inside, 1, Corpus.of(bundle))
    assert ranked(early, "share", ALL)[0] == feature["colour"]
    beside = measure(codes, outside, 0, Corpus.of(bundle))
    assert ranked(beside, "share", ALL)[0] == feature["background"]
    assert beside.mean[feature["object"]] < 0.05  # of 6 under the mask: noise
    dense = np.stack([codes.maps(f).reshape(N_STEPS, -1) for f in range(D_SAE)], -1)
    import torch

    x = store.site(SITE).read(sample=[sample], step=list(bundle.steps), branch="cond")[0, :, 0]
    with torch.no_grad():
        np.testing.assert_allclose(dense, sae.encode(torch.from_numpy(x).float()).numpy(), atol=1e-6)
    again = drawn_codes(sae, {SITE: x}, steps=bundle.steps, log_snr=bundle.log_snr, grid=(SIDE, SIDE))
    np.testing.assert_array_equal(again.values, codes.values)


def test_another_models_dictionary_is_refused(opened: tuple[ActivationStore, Any, FeatureBundle]) -> None:
    from sae import SAEConfig, TopKSAE
    from sae.errors import SAESiteMismatch

    store, _, bundle = opened
    narrow = TopKSAE(SAEConfig(d_in=4, d_sae=8, k=2, site=SITE), seed=0)
    with pytest.raises(SAESiteMismatch, match="width"):
        recorded_codes(store, narrow, 0, steps=bundle.steps, branch="cond")


# --- drawing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Two samples of the tiny pipeline, three of its four steps, half of the tokens."""
    from probe.capture import CapturePlan, collect
    from probe.model import load_pipeline

    pipe = load_pipeline(tiny_folder)
    plan = CapturePlan.for_pipeline(
        pipe, ["mid_block"], ["a red star", "a blue cup"], record_steps=(0, 1, 3), tokens=8, batch_size=1
    )
    return collect(pipe, plan, tmp_path_factory.mktemp("drawn") / "run" / "store")


def request(folder: Path | str, **changed: Any) -> Request:
    from apps.inspecting.drawing import Request

    asked: dict[str, Any] = {"prompt": "a blue cup", "seed": 1, "guidance": 2.0, "branches": ("uncond", "cond")}
    asked.update({"model": str(folder)} | changed)
    return Request(**asked)


def nothing(*_: object) -> None:
    pass


def test_a_recorded_prompt_drawn_again_has_the_recorded_rows(collected: ActivationStore, tiny_folder: Path) -> None:
    from apps.images import read_image
    from apps.inspecting.drawing import draw

    steps: list[tuple[int, int]] = []
    previews: list[int] = []
    found = draw(
        collected,
        collected.sites,
        request(tiny_folder),
        on_step=lambda *step: steps.append(step),
        on_preview=lambda step, image: previews.append(step),
    )
    (site,) = collected.sites
    assert found.branches == collected.spec.branches
    np.testing.assert_array_equal(found.rows[site], collected.site(site).read(sample=[1])[0])
    np.testing.assert_array_equal(found.image, read_image(collected.path / "images" / "000001.png"))
    assert steps == [(i, 4) for i in range(4)]
    assert previews == [0, 1, 2, 3]  # a v-prediction has a clean sample at zero terminal SNR too
    assert sorted(found.predictions) == [0, 1, 2]  # of the recorded steps, as the store counts them
    np.testing.assert_array_equal(found.prediction(1), found.predictions[1])
    # At the last step DDIM ends on its own prediction.
    np.testing.assert_allclose(found.predictions[2].astype(int), found.image.astype(int), atol=1)


def test_without_guidance_one_branch_is_computed(collected: ActivationStore, tiny_folder: Path) -> None:
    from apps.inspecting.drawing import draw, room

    asked = request(tiny_folder, guidance=1.0)
    found = draw(collected, collected.sites, asked, on_step=nothing, on_preview=nothing)
    assert found.branches == ("cond",)
    (rows,) = found.rows.values()
    assert rows.nbytes == room(collected, collected.sites, asked)
    assert found.branch("cond")[collected.sites[0]].shape == rows[:, 0].shape


def test_a_drawing_ends_within_one_step(collected: ActivationStore, tiny_folder: Path) -> None:
    """And leaves no hook behind: the next one is whole."""
    pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")
    from apps.dashboard.jobs import Job
    from apps.inspecting.drawing import draw

    reached = threading.Event()
    seen = []

    def work(job: Job[Any]) -> Any:
        def on_step(step: int, steps: int) -> None:
            seen.append(step)
            if step == 1:
                job.cancel()
                reached.set()
            job.step(step, steps)

        return draw(collected, collected.sites, request(tiny_folder), on_step=on_step, on_preview=nothing)

    job = Job("draw", work).start()
    job.join(120)
    assert reached.is_set()
    assert (job.state, job.result, seen) == ("cancelled", None, [0, 1])
    whole = draw(collected, collected.sites, request(tiny_folder), on_step=nothing, on_preview=nothing)
    assert whole.image.shape == (16, 16, 3)


def test_another_model_is_refused(collected: ActivationStore) -> None:
    from apps.errors import CannotDraw, ModelMissing
    from apps.inspecting.drawing import draw

    with pytest.raises(CannotDraw, match=r"not the model that the run was recorded from: .*weights_hash"):
        draw(collected, collected.sites, request("canvas"), on_step=nothing, on_preview=nothing)
    with pytest.raises(ModelMissing, match="'nobody/nothing' is not on this machine.*hf download nobody/nothing"):
        draw(collected, collected.sites, request("nobody/nothing"), on_step=nothing, on_preview=nothing)
    with pytest.raises(ModelMissing, match="Write the folder that the run's model was loaded from"):
        draw(collected, collected.sites, request("no folder"), on_step=nothing, on_preview=nothing)


def test_a_run_of_real_images_cannot_be_drawn() -> None:
    from apps.errors import CannotDraw
    from apps.inspecting.drawing import draw

    class Photographs:
        plan: ClassVar = {"log_snr": [0.0]}

    store: Any = Photographs()
    with pytest.raises(CannotDraw, match="real images at chosen noise levels"):
        draw(store, [SITE], request("canvas"), on_step=nothing, on_preview=nothing)


def test_out_of_memory_says_what_was_asked(collected: ActivationStore, tiny_folder: Path) -> None:
    from apps.errors import NotEnoughRoom
    from apps.inspecting.drawing import draw

    def full(step: int, steps: int) -> None:
        raise MemoryError

    with pytest.raises(NotEnoughRoom, match=r"one image in 4 steps at guidance 2, and 1.54 kB .* uncond and cond"):
        draw(collected, collected.sites, request(tiny_folder), on_step=full, on_preview=nothing)


def test_rankings_have_a_measure() -> None:
    from apps.inspecting import Measures

    assert set(SORTS) <= set(Measures.__dataclass_fields__)
