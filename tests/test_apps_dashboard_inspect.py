"""The Inspect page: its parts without Streamlit, jobs, and the page in its states, on runs of known content."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_apps_dashboard_run import D_SAE, HOSTILE, N_STEPS, SIDE, planted_values

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300.0


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    from streamlit.testing.v1 import AppTest

    # A page becomes the main module, which the children of later tests would run.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def open_page(place: Path, **params: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["Home.py", str(place)])
        test = AppTest.from_file(str(ROOT / "apps" / "dashboard" / "Home.py"), default_timeout=TIMEOUT)
        test.switch_page("app_pages/inspect.py")
        for key, value in params.items():
            test.query_params[key] = value
        return clean(test.run())

    return open_page


def clean(test: Any) -> Any:
    assert not test.exception, [e.value for e in test.exception]
    return test


def words(test: Any) -> str:
    kinds = ("title", "subheader", "markdown", "caption", "text", "info", "warning", "code")
    return "\n".join(str(element.value) for kind in kinds for element in test.get(kind)).replace("\\", "")


def numbers(frame: Any) -> list[int]:
    """Features of a table, from the addresses of their pages."""
    return [int(re.search(r"f=(\d+)", text)[1]) for text in frame["Feature"]]  # type: ignore[index]


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        ((1.6, 4.4), (0.9, 2.1), "1-2,2-4"),  # centres 2, 3, 4 and 1, 2
        ((4.4, 1.6), (2.1, 0.9), "1-2,2-4"),  # drawn the other way
        ((3.1, 3.3), (5.2, 5.4), "5,3"),  # within one cell
        ((-0.5, 7.5), (-0.5, 7.5), "all"),
        ((-9.0, -8.0), (7.6, 20.0), "7,0"),  # outside
    ],
)
def test_a_box_selects_the_cells_whose_centres_it_holds(
    x: tuple[float, float], y: tuple[float, float], cells: str
) -> None:
    from apps.dashboard.inspect_figures import boxed

    assert str(boxed((8, 8), x, y)) == cells


def test_picker_has_a_marker_for_every_cell() -> None:
    from apps.dashboard.inspect_figures import cell_picker
    from apps.inspecting import Region

    heat = np.arange(6.0).reshape(2, 3)
    whole = cell_picker(b"jpeg", heat, Region.whole((2, 3))).to_dict()
    assert list(whole["data"][0]["customdata"]) == list(range(6))
    assert whole["data"][0]["text"][4] == "row 1, column 1: 4"
    assert (whole["data"][0]["x"][4], whole["data"][0]["y"][4]) == (1, 1)
    assert whole["layout"]["yaxis"]["range"] == [1.5, -0.5]  # row 0 is at the top
    assert whole["layout"]["dragmode"] == "select"
    assert "shapes" not in whole["layout"]
    part = cell_picker(b"jpeg", heat, Region((2, 3), (0, 0), (1, 2)), drag=False).to_dict()
    frame = part["layout"]["shapes"][-1]
    assert (frame["x0"], frame["x1"], frame["y0"], frame["y1"]) == (0.5, 2.5, -0.5, 0.5)
    assert part["layout"]["dragmode"] == "pan"
    assert part["layout"]["xaxis"]["fixedrange"]


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        ("guidance_scale", ["0", "2.5", "100"], ["", "nan", "-1", "inf", "101", "x"]),
        ("prompt_text", ["a cup", HOSTILE], ["", "  ", "a\nb", "x" * 501]),
    ],
)
def test_what_a_link_may_ask_to_draw(read: str, good: list[str], bad: list[str]) -> None:
    from apps.dashboard import inspected

    parse = getattr(inspected, read)
    assert [str(parse(text)) for text in good] == [str(parse(str(parse(text)))) for text in good]
    for text in bad:
        with pytest.raises(ValueError, match=r"guidance is a number from 0 to 100|a prompt is one line of 1 to 500"):
            parse(text)


# --- jobs ----------------------------------------------------------------------------------------------------------


def test_jobs_compute_one_at_a_time_and_hear_of_their_end() -> None:
    from apps.dashboard.jobs import Job

    begun, go_on = threading.Event(), threading.Event()

    def slow(job: Job[int]) -> int:
        begun.set()
        assert go_on.wait(TIMEOUT)
        job.step(1, 2, "half")
        return 7

    first = Job("first", slow).start()
    assert begun.wait(TIMEOUT)
    second, third = Job("second", slow).start(), Job("third", slow).start()
    assert [job.state for job in (first, second, third)] == ["running", "waiting", "waiting"]
    second.cancel()  # a waiting job ends without having begun
    second.join(TIMEOUT)
    assert second.state == "cancelled"
    go_on.set()
    for job in (first, third):
        job.join(TIMEOUT)
        assert (job.state, job.result, job.done, job.total, job.note) == ("done", 7, 1, 2, "half")
        assert not job.alive


def test_a_failed_job_keeps_its_error_and_lets_the_next_one_work() -> None:
    from apps.dashboard.jobs import Job

    def wrong(job: Job[int]) -> int:
        raise LookupError("why")

    failed = Job("failed", wrong).start()
    failed.join(TIMEOUT)
    assert failed.state == "failed"
    assert isinstance(failed.error, LookupError)
    after = Job("after", lambda job: 1).start()
    after.join(TIMEOUT)
    assert (after.state, after.result) == ("done", 1)


# --- the page ------------------------------------------------------------------------------------------------------


def test_page_shows_the_planted_features(app: Callable[..., Any], planted: Path) -> None:
    """Sample 0 at step 4, where objects are strongest; then the script of the page, which prints the same table."""
    from activations_store import ActivationStore

    store = ActivationStore.open(planted / "store")
    page = app(planted, in_sample="0", in_step="4", in_sort="surprise", in_dense="shown")
    assert not page.warning
    assert [element.value for element in page.subheader] == ["Over denoising time", "Beside a second image"]
    label = {factor: str(store.labels(factor)[0]) for factor in ("object", "style")}
    planted_features = {planted_values().index(item) for item in label.items()}
    table = page.dataframe[0].value
    assert planted_features <= set(numbers(table)[:5])
    assert f"object {label['object']}" in table["Label"].tolist()
    assert table["Surprise"].is_monotonic_decreasing
    assert len(page.get("plotly_chart")) == 2
    assert page.query_params["in_cells"] == "all"  # the link says all, defaults included
    assert page.query_params["in_f"] == "top"
    assert HOSTILE in [element.value for element in page.text]
    assert not any("alert(1)" in str(e.value) for kind in ("markdown", "caption", "warning") for e in page.get(kind))
    script = next(code.value for code in page.code if "recorded_codes" in code.value)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [line.split() for line in done.stdout.splitlines()]
    assert [int(line[0]) for line in printed] == numbers(table)
    np.testing.assert_allclose([float(line[3]) for line in printed], table["Surprise"], rtol=1e-6)

    page.query_params["in_cells"] = "0,0"
    page.query_params["in_f"] = "9"
    clean(page.run())
    assert len(numbers(page.dataframe[0].value)) <= 5  # one cell holds k features at most
    assert "--feature 9 " in words(page)
    page.button(key="in_whole").click().run()
    assert clean(page).query_params["in_cells"] == "all"


def test_samples_are_found_and_compared(app: Callable[..., Any], planted: Path) -> None:
    from activations_store import ActivationStore

    prompts = ActivationStore.open(planted / "store").samples.column("prompt").to_pylist()
    page = app(planted, in_sample="1", in_with="sample", in_b="1")
    both, only_a, only_b = (frame.value for frame in page.dataframe[1:4])
    assert len(only_a) == len(only_b) == 0
    np.testing.assert_array_equal(both["A"], both["B"])
    page.text_input(key="in_words").set_value("STYLE umbrella").run()
    matches = [i for i, prompt in enumerate(prompts) if "style" in prompt and "umbrella" in prompt]
    assert page.selectbox(key="in_list").label == f"Sample ({len(matches)} match)"
    page.selectbox(key="in_list").select(matches[-1]).run()
    assert clean(page).query_params["in_sample"] == str(matches[-1])
    page.text_input(key="in_words").set_value("nosuchword").run()
    assert "No prompt holds all of these words" in words(page)
    page.button(key="in_clear").click().run()
    assert clean(page).text_input(key="in_words").value == ""


def test_wrong_links_are_told(app: Callable[..., Any], planted: Path) -> None:
    page = app(
        planted,
        in_sample="999",
        in_step="77",
        in_cells="<b>",
        in_f=str(D_SAE),
        in_branch="uncond",
        in_from="own",
        in_prompt="",
        in_guidance="x",
    )
    told = "\n".join(warning.value for warning in page.warning).replace("\\", "")
    assert "guidance 'x'; guidance is a number from 0 to 100" in told
    assert "prompt ''; a prompt is one line" in told
    page.query_params["in_from"] = "recorded"
    clean(page.run())
    told = "\n".join(warning.value for warning in page.warning).replace("\\", "")
    for part in (
        "sample '999'; this run has samples 0 to 95",
        f"step '77'; there is {', '.join(map(str, range(N_STEPS)))}",
        f"cells '<b>'; cells are all, or rows 0 to {SIDE - 1}",
        f"feature '{D_SAE}'; this run has features 0 to {D_SAE - 1}, or top",
        "branch 'uncond'; there is cond",
    ):
        assert part in told


def test_empty_selection_offers_a_way_out(app: Callable[..., Any], dense: Path) -> None:
    """A dictionary all of whose features are dense: nothing is left until they are shown."""
    page = app(dense)
    assert "Only dense features are on here, and they are hidden" in words(page)
    page.button(key="in_relax").click().run()
    assert clean(page).query_params["in_dense"] == "shown"
    assert set(page.dataframe[0].value["State"]) == {"dense"}


@pytest.mark.parametrize(
    ("parts", "says", "command"),
    [
        (("store",), "no dictionary has been trained", "denoscope train {run}/store --site unet.mid_block:out"),
        (("store", "bundle"), "only its feature bundle is here", "denoscope train {run}/store --site "),
        (("sae", "bundle"), "it is not in this run", "denoscope collect --model canvas --sites mid_block --out {run}"),
    ],
)
def test_what_is_missing_is_named(
    app: Callable[..., Any], planted: Path, tmp_path: Path, parts: tuple[str, ...], says: str, command: str
) -> None:
    for part in parts:
        (tmp_path / part).symlink_to(planted / part)
    page = app(tmp_path)
    assert says in words(page)
    assert any(code.value.startswith(command.format(run=tmp_path)) for code in page.code)


def test_a_sample_that_was_not_collected_is_told(app: Callable[..., Any], planted: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(planted / "store", tmp_path / "store")
    for part in ("sae", "bundle"):
        (tmp_path / part).symlink_to(planted / part)
    for record in (tmp_path / "store" / "commits").iterdir():
        record.unlink()
    page = app(tmp_path, in_sample="5")
    assert "The sample cannot be read" in words(page)
    assert "committed" in words(page)


# --- own prompts ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny pipeline whose dictionary has two features, both on in every row."""
    import torch

    from probe.capture import CapturePlan, collect
    from probe.model import load_pipeline
    from sae import SAEConfig, TopKSAE, build_bundle, save_sae

    run = tmp_path_factory.mktemp("inspect") / "tiny_run"
    pipe = load_pipeline(tiny_folder)
    plan = CapturePlan.for_pipeline(pipe, ["mid_block"], ["a red star", "a blue cup"], batch_size=1)
    store = collect(pipe, plan, run / "store")
    (site,) = store.sites
    sae = TopKSAE(SAEConfig(16, 2, k=2, site=site), seed=0, metadata={"site": site})
    with torch.no_grad():
        sae.b_enc.add_(100.0)
    save_sae(sae, run / "sae" / "mid_block")
    build_bundle(sae, store, run / "store" / "images", run / "bundle" / "mid_block")
    return run


def finished(page: Any, run: Path) -> Any:
    """Waits for the page's job, and draws the page again."""
    job = page.session_state[f"job_inspect {run} mid_block"]
    job.join(TIMEOUT)
    assert not job.alive
    return clean(page.run())


def test_own_prompt_is_drawn_and_inspected(app: Callable[..., Any], dense: Path, tiny_folder: Path) -> None:
    """First with a model that is not there; then with the run's, which gives what was recorded."""
    page = app(dense, in_from="own", in_prompt="a blue cup", in_seed="1", in_dense="shown", in_step="2")
    assert not page.dataframe
    page.button(key="in_draw").click().run()
    clean(finished(page, dense))
    assert "The image could not be drawn" in words(page)
    assert "The model 'tiny' is not on this machine" in words(page)
    page.text_input(key="in_model").set_value(str(tiny_folder)).run()
    page.button(key="in_draw").click().run()
    clean(finished(page, dense))
    assert "could not be drawn" not in words(page)
    assert "The image as predicted at step 2" in words(page)
    own = page.dataframe[0].value
    page.query_params["in_from"] = "recorded"
    page.query_params["in_sample"] = "1"
    page.query_params["in_with"] = "own prompt"
    clean(page.run())
    for name in ("Feature", "Activation", "Share", "Surprise"):
        assert page.dataframe[0].value[name].tolist() == own[name].tolist()
    both, only_a, only_b = (frame.value for frame in page.dataframe[1:4])
    assert len(only_a) == len(only_b) == 0
    np.testing.assert_array_equal(both["A"], both["B"])


def test_a_drawing_that_does_not_fit_offers_less(
    app: Callable[..., Any], dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.inspecting import drawing

    def full(name: str, dtype: str) -> Any:
        raise MemoryError

    monkeypatch.setattr(drawing, "_model", full)
    page = app(dense, in_from="own")
    page.button(key="in_draw").click().run()
    clean(finished(page, dense))
    assert "Memory ran out. Asked for: one image in 4 steps at guidance 2" in words(page)
    assert "branches uncond and cond" in words(page)
    page.button(key="in_cheaper_branch").click().run()
    clean(finished(page, dense))
    assert "branches cond." in words(page)


def test_a_running_drawing_can_be_cancelled(
    app: Callable[..., Any], dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.inspecting import drawing

    def endless(*_: Any, on_step: Callable[[int, int], None], **__: Any) -> Any:
        while True:
            on_step(1, 4)
            time.sleep(0.01)

    monkeypatch.setattr(drawing, "draw", endless)
    page = app(dense, in_from="own")
    page.button(key="in_draw").click().run()
    name = f"inspect {dense} mid_block"
    assert page.button(key="in_draw").disabled
    page.button(key=f"cancel_{name}").click().run()
    finished(page, dense)
    assert "The drawing was cancelled" in words(page)
    assert not page.button(key="in_draw").disabled
