"""The dashboard's parts without Streamlit, then its two pages in every state, on a run with planted truth."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_apps_dashboard_run import D_SAE, HOSTILE, N_STEPS, planted_results

pytest.importorskip("streamlit", reason="the dashboard is the extra [app]")

DASHBOARD = Path(__file__).resolve().parent.parent / "apps" / "dashboard"
TIMEOUT = 300.0  # seconds; only catches a page that hangs, also on a machine that is busy with something else


@pytest.fixture
def run(planted: Path) -> Path:
    return planted


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Opens a page: app(run, "home" | "feature", **query_params)."""
    from streamlit.testing.v1 import AppTest

    # A page becomes the main module, which the children of later tests would run.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def open_page(place: Path | str, page: str = "home", **params: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["Home.py"])
        monkeypatch.setenv("DENOSCOPE_RUN", str(place))
        test = AppTest.from_file(str(DASHBOARD / "Home.py"), default_timeout=TIMEOUT)
        if page != "home":
            test.switch_page(f"app_pages/{page}.py")
        for key, value in params.items():
            test.query_params[key] = value
        return test.run()

    return open_page


def words(test: Any) -> str:
    """Everything that a page says, whichever element says it."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "text", "info", "warning", "error", "code")
    return "\n".join(str(element.value) for kind in kinds for element in test.get(kind))


def clean(test: Any) -> None:
    assert not test.exception, [e.value for e in test.exception]


# --- parts ---------------------------------------------------------------------------------------------------------


def test_command_binds_to_this_machine_and_sends_nothing() -> None:
    from apps.dashboard.launch import command

    arguments = command("-runs/x y", 8600)
    assert arguments[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(arguments[4]).samefile(DASHBOARD / "Home.py")
    assert arguments[-2:] == ["--", "-runs/x y"]
    for flag in (
        "--server.address=127.0.0.1",
        "--server.allowedHosts=localhost",
        "--server.allowedHosts=127.0.0.1",
        "--client.showErrorDetails=none",
        "--browser.gatherUsageStats=false",
        "--server.port=8600",
    ):
        assert flag in arguments


@pytest.mark.parametrize("port", [0, 80, 65536, -1])
def test_command_refuses_a_port(port: int) -> None:
    from apps.dashboard.launch import command
    from apps.errors import InvalidOption

    with pytest.raises(InvalidOption, match=f"port {port} cannot be used; expected 1024 to 65535"):
        command("runs/x", port)


@pytest.mark.parametrize(
    "text", ["99", "-1", "1.5", "", " ", "1e3", "٣", "../../etc/passwd", "<b>", "9" * 400, "\x00", "3;4"]
)
def test_wrong_number_in_a_link_is_told(text: str) -> None:
    from apps.dashboard.links import whole_number

    found = whole_number(text, what="feature", low=0, high=55, default=7)
    assert found.value == 7
    assert found.problem is not None
    assert "this run has features 0 to 55. Showing 7." in found.problem
    assert len(found.problem) < 160


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_link_leaves_its_range(text: str) -> None:
    from apps.dashboard.links import one_of, quoted, whole_number

    value, problem = whole_number(text, what="feature", low=3, high=55, default=7)
    assert 3 <= value <= 55
    clean = text.strip()
    assert (problem is None) == bool(len(clean) <= 12 and re.fullmatch(r"0*([3-9]|[1-4][0-9]|5[0-5])", clean))
    name, _ = one_of(text, what="map", choices=("heat", "ice"), default="heat")
    assert name in ("heat", "ice")
    assert "\n" not in quoted(text)


def test_time_runs_from_noise_to_image_in_every_unit() -> None:
    from apps.dashboard.timeaxis import TimeAxis

    axes = {unit: TimeAxis((0, 2, 4), (999.0, 500.0, 1.0), (-9.0, 0.5, 8.25), unit) for unit in ("step", "t", "logsnr")}
    assert axes["t"].reversed
    assert not axes["step"].reversed
    assert [axis.short(1) for axis in axes.values()] == ["2", "500", "0.5"]
    assert axes["t"].label(2) == "step 4 of 4 · t 1 · log-SNR 8.2"


def test_zero_is_transparent_and_a_value_has_one_colour() -> None:
    from apps.dashboard.tiles import COLOUR_MAPS, Look, tile

    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    shown = tile(image, np.zeros((4, 4)), scale=2.0, look=Look(), side=32)
    np.testing.assert_array_equal(shown, image)
    np.testing.assert_array_equal(tile(image, np.ones((4, 4)), scale=2.0, look=Look(view="image"), side=32), image)
    for colours in COLOUR_MAPS:
        look = Look(view="map", colours=colours, smooth=False)
        alone = tile(None, np.array([[1.0]]), scale=2.0, look=look, side=8)
        beside = tile(None, np.array([[1.0, 2.0]]), scale=2.0, look=look, side=8)
        np.testing.assert_array_equal(alone[0, 0], beside[0, 0])
        assert not np.array_equal(beside[0, 0], beside[0, -1])
    assert tile(None, np.zeros((2, 4)), scale=0.0, look=Look(), side=8).shape == (4, 8, 3)


def test_tiles_are_jpeg_files() -> None:
    from PIL import Image

    from apps.dashboard.tiles import Look, colour_bar, strip

    files = strip(None, np.random.default_rng(0).random((3, 8, 8)), scale=1.0, look=Look(), side=64)
    assert [Image.open(io.BytesIO(file)).size for file in [*files, colour_bar("ice")]] == [(64, 64)] * 3 + [(512, 14)]


def test_charts_have_titles_and_show_text_literally() -> None:
    from apps.dashboard import figures
    from apps.dashboard.timeaxis import TimeAxis

    axis = TimeAxis((0, 1), (9.0, 1.0), (-1.0, 1.0), "t")
    line = figures.over_time(axis, {"a": [1.0, float("nan")]}, y_title="mean activation").to_dict()
    assert line["layout"]["xaxis"]["title"]["text"] == "timestep t (noise → image)"
    assert line["layout"]["xaxis"]["autorange"] == "reversed"
    assert line["layout"]["yaxis"]["title"]["text"] == "mean activation"
    assert list(line["data"][0]["y"]) == [1.0, None]
    heat = figures.concept_heatmap(axis, ["<b>x</b>"], np.zeros((1, 2)), colour_title="mean").to_dict()
    bars = figures.concept_bars(["a", "<b>x</b>"], [1.0, 2.0], [0.5, 0.9]).to_dict()
    assert heat["data"][0]["y"] == ("&lt;b&gt;x&lt;/b&gt;",) or list(heat["data"][0]["y"]) == ["&lt;b&gt;x&lt;/b&gt;"]
    assert list(bars["data"][0]["y"]) == ["&lt;b&gt;x&lt;/b&gt;", "a"]  # the largest score comes first


def test_results_keep_their_intervals() -> None:
    from apps.dashboard import results

    rows: Any = planted_results()["rows"]
    found = results.scores([*rows, {"name": "a bench", "seconds": 3.0}, {"factor": "object", "target": 1, "ua": 0.5}])
    assert [(s.name, s.edited) for s in found][:2] == [("object: star", True), ("object: star", False)]
    assert len(found) == 4
    assert results.table(found)[0]["UA"] == "97.0 % (94.0 to 99.0)"
    assert {row["group"] for row in results.chart_rows(found)} == {"object: star", "style: mosaic"}
    assert results.cell(None) == "-"
    assert results.cell((0.5, None, None)) == "50.0 %"


def test_nothing_renders_foreign_markup_or_reaches_a_model() -> None:
    forbidden = (
        "unsafe_allow_html",
        "st.html",
        "components.v1",
        "pickle",
        "eval(",
        "diffusers",
        "import torch",
        "from probe",
    )
    for file in DASHBOARD.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], file.name


# --- states of a run -----------------------------------------------------------------------------------------------


def test_no_run_given(app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    page = app("")
    clean(page)
    assert page.title[0].value == "No run is open"
    assert "denoscope app runs/demo" in words(page)


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_no_run_there(app: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    place = tmp_path / "a **bold** run"
    if kind == "empty":
        place.mkdir()
    for name in ("home", "feature"):
        page = app(place, name)
        clean(page)
        assert page.title[0].value == "No run is open"
        assert ("holds no run" if kind == "empty" else "does not exist") in words(page)
        assert any(code.value == f"denoscope demo --out '{place}'" for code in page.code)


@pytest.mark.parametrize(
    ("stages", "command"),
    [(1, "denoscope train {run}/store --site unet.mid_block:out"), (2, "denoscope features {run}")],
)
def test_unfinished_run_says_what_comes_next(
    app: Callable[..., Any], run: Path, tmp_path: Path, stages: int, command: str
) -> None:
    place = tmp_path / "partial"
    place.mkdir()
    for part in ("store", "sae")[:stages]:
        (place / part).symlink_to(run / part)
    for name in ("home", "feature"):
        page = app(place, name)
        clean(page)
        assert command.format(run=place) in [code.value.split(" --expansion")[0] for code in page.code]
    assert {m.label for m in app(place).metric} >= {"Images", "Steps"}


def test_unfinished_collection_says_how_far_it_is(app: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "store", tmp_path / "run" / "store")
    for record in (tmp_path / "run" / "store" / "commits").iterdir():
        record.unlink()
    page = app(tmp_path / "run")
    clean(page)
    assert "0 of 96 samples are stored" in words(page)
    assert any("denoscope collect" in code.value for code in page.code)


def test_damaged_bundle_is_named(app: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "bundle", tmp_path / "run" / "bundle")
    maps = tmp_path / "run" / "bundle" / "mid_block" / "maps.safetensors"
    maps.write_bytes(maps.read_bytes()[:1000])
    for name in ("home", "feature"):
        page = app(tmp_path / "run", name)
        clean(page)
        assert "cannot be read" in words(page)
        assert any("maps.safetensors" in code.value for code in page.code)


# --- pages ---------------------------------------------------------------------------------------------------------


def test_home_shows_the_run(app: Callable[..., Any], run: Path) -> None:
    page = app(run)
    clean(page)
    assert page.title[0].value == "planted"
    shown = {metric.label: metric.value for metric in page.metric}
    assert shown["Images"] == "96"
    assert shown["Features"] == str(D_SAE)
    assert shown["Dead"] == "7.1 %"
    titles = [element.value for element in page.subheader]
    assert titles == [
        "Which feature answers to which concept",
        "Unlearning",
        "All features",
        "The dictionary",
        "The collection",
    ]
    tables = [frame.value for frame in page.dataframe]
    assert "97.0 % (94.0 to 99.0)" in tables[0].to_string()
    assert len(tables[1]) == D_SAE - 4  # dead features are hidden
    assert HOSTILE in "\n".join(text.value for text in page.text)
    assert len(page.get("plotly_chart")) == 3
    assert len(page.get("image")) == 12  # one for each object


def test_home_filters_features(app: Callable[..., Any], run: Path) -> None:
    page = app(run)
    page.selectbox(key="home_filter_factor").select("object").run()
    page.selectbox(key="home_filter_concept").select("star").run()
    page.slider(key="home_filter_auc").set_value(0.9).run()
    clean(page)
    table = page.dataframe[1].value
    assert 0 in table["Feature"].tolist()
    assert set(table["Concept"]) == {"star"}
    page.toggle(key="home_filter_dense").set_value(False)
    page.selectbox(key="home_filter_factor").select("background").run()
    page.selectbox(key="home_filter_concept").select("white").run()
    clean(page)
    assert "No feature passes these filters" in page.info[0].value


def test_home_opens_a_feature(app: Callable[..., Any], run: Path) -> None:
    page = app(run)
    page.number_input(key="home_jump").set_value(5)
    page.button(key="home_open").click().run()
    clean(page)
    assert page.title[0].value == "Feature 5"
    assert page.query_params["f"] == "5"


def test_feature_page(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "feature", f="9")
    clean(page)
    assert not page.warning
    assert page.title[0].value == "Feature 9"
    titles = [element.value for element in page.subheader]
    assert titles == [
        "Strongest examples",
        "One example over all steps",
        "Over denoising time",
        "Concepts",
        "Nearest features",
    ]
    assert "object umbrella, AUC 1.00" in words(page)
    assert {m.label for m in page.metric} == {"Density", "Fires in", "Max", "p99", "Peak (step)", "Explains"}
    assert len(page.get("plotly_chart")) == 4
    assert len(page.get("image")) >= 9 + N_STEPS + 2  # examples, strip, colour bar, mean map
    assert page.query_params["ft_step"] == "strongest"  # the link says all, defaults included
    push = f"denoscope steer --sae {run}/sae/mid_block --feature 9 --concept object=umbrella --out {run}/steer-9"
    assert push in [code.value for code in page.code]


def test_feature_controls_move_the_link(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "feature", f="9", ft_step="2", ft_map="map", ft_colours="cividis", ft_opacity="35", unit="logsnr")
    clean(page)
    assert not page.warning
    assert page.select_slider[0].value == "2"
    assert "step 2 of 5 · t 665 · log-SNR -4.2" in words(page)
    assert page.metric[4].label == "Peak (log-SNR)"
    page.select_slider[0].set_value("4").run()
    assert page.query_params["ft_step"] == "4"
    page.button(key="next").click().run()
    clean(page)
    assert page.title[0].value == "Feature 10"
    assert (page.query_params["f"], page.query_params["ft_step"]) == ("10", "4")


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"f": "99999"}, "asks for feature '99999'; this run has features 0 to 55"),
        ({"f": "../../etc/passwd"}, "this run has features 0 to 55"),
        ({"f": "9", "ft_step": "77", "ft_map": "<img src=x>", "ft_example": "10"}, "asks for step '77'"),
        ({"f": "9", "unit": "../x", "ft_colours": "jet"}, "asks for time unit"),
    ],
)
def test_wrong_link_is_told_and_answered(app: Callable[..., Any], run: Path, params: dict[str, str], says: str) -> None:
    page = app(run, "feature", **params)
    clean(page)
    said = "\n".join(warning.value for warning in page.warning).replace("\\", "")
    assert says in said
    assert "Showing" in said
    assert page.title[0].value.startswith("Feature ")
    assert "root:" not in words(page)


def test_dead_feature(app: Callable[..., Any], run: Path) -> None:
    page = app(run, "feature", f=str(D_SAE - 1))
    clean(page)
    assert f"Feature {D_SAE - 1} is dead" in page.info[0].value
    assert not page.metric
    page.button(key="previous").click().run()
    assert page.title[0].value == f"Feature {D_SAE - 2}"


def test_feature_without_pictures(app: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    """A bundle that was moved away from its store still shows the maps."""
    shutil.copytree(run / "bundle", tmp_path / "run" / "bundle")
    page = app(tmp_path / "run", "feature", f="3")
    clean(page)
    assert "no picture" in words(page)
    assert len(page.get("image")) >= 9 + N_STEPS


def test_folder_of_runs_lists_them(app: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to(run)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "store").symlink_to(run / "store")
    page = app(tmp_path, run="b")
    clean(page)
    assert page.sidebar.selectbox[0].options == ["a", "planted"]


def test_prompts_are_never_markup(app: Callable[..., Any], run: Path) -> None:
    for page in (app(run), app(run, "feature", f="0")):
        formatted = [str(e.value) for kind in ("markdown", "caption", "info", "warning") for e in page.get(kind)]
        assert not any("alert(1)" in text for text in formatted)
        assert not any(getattr(e.proto, "allow_html", False) for e in page.get("markdown"))


def test_feature_page_is_quick(app: Callable[..., Any], run: Path) -> None:
    """Computing time, so that a busy machine does not matter; what a reader waits for is near it."""
    page = app(run, "feature", f="1")
    spent = []
    for feature in ("2", "3", "4"):
        page.query_params["f"] = feature
        start = time.process_time()
        page.run()
        spent.append(time.process_time() - start)
    clean(page)
    assert sorted(spent)[1] < 1.5


def test_browsing_never_loads_a_model(run: Path) -> None:
    script = f"""
import json, sys
from streamlit.testing.v1 import AppTest
sys.argv = ["Home.py", {str(run)!r}]
page = AppTest.from_file({str(DASHBOARD / "Home.py")!r}, default_timeout={TIMEOUT}).run()
assert not page.exception and page.title[0].value == "planted", page.exception
for name in ("feature", "inspect"):
    page.switch_page(f"app_pages/{{name}}.py").run()
    assert not page.exception and page.title[0].value.lower().startswith(name), page.exception
    assert name == "feature" or page.dataframe, "the sample was read and encoded"
print(json.dumps([n for n in ("diffusers", "transformers", "probe", "nnsight", "sae_lens") if n in sys.modules]))
"""
    environment = os.environ | {"PYTHONPATH": str(DASHBOARD.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
