"""denoscope lens: every lens writes its sheet and its numbers; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.cli import FAILED, main
from apps.images import heat_colours
from apps.lenses.sheets import SEGMENTS, dotted, number_table, segment_sheet, word_sheet

ATTN = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
DRAW = ["--prompt", "a red star", "--seeds", "0", "1", "--steps", "2", "--guidance", "2"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / name)
    return [str(folder / name) for name in ("one.png", "two.png")]


def look(tiny_folder: Path, out: Path, *arguments: str) -> dict:
    assert main(["lens", arguments[0], "--model", str(tiny_folder), "--out", str(out), *arguments[1:]]) == 0
    assert np.asarray(Image.open(out)).std() > 0
    return json.loads(out.with_suffix(".json").read_text())


def test_words_while_drawing_and_on_pictures(tiny_folder, pictures, tmp_path):
    found = look(tiny_folder, tmp_path / "a.png", "attention", *DRAW, "--words", "star", "red")
    assert np.shape(found["maps"])[:2] == (2, 2) and found["words"] == [["star", "red"]] * 2
    given = ["--images", *pictures, "--caption", "a red star", "--words", "star", "--sites", ATTN]
    plain = look(tiny_folder, tmp_path / "b.png", "attention", *given)
    slope = look(tiny_folder, tmp_path / "c.png", "attention", *given, "--gradient")
    assert list(plain["mass"]) == [f"unet.{ATTN}:probs"] and plain["maps"] != slope["maps"]


def test_points_segments_and_inversion_of_pictures(tiny_folder, pictures, tmp_path):
    given = ["--images", pictures[0], pictures[0], "--site", "up_blocks.0"]
    found = look(
        tiny_folder,
        tmp_path / "f.png",
        "features",
        *given,
        "--point",
        "0.3125,0.6875",
        "--log-snr",
        "6",
        "--draws",
        "2",
    )
    assert np.hypot(*np.subtract(found["matches"][0]["points"][0], (0.3125, 0.6875))) < 0.3
    cut = look(tiny_folder, tmp_path / "s.png", "segment", *given, "--max-segments", "2")
    assert np.shape(cut["segments"]) == (2, 8, 8) and len(cut["background"]) == 2
    again = look(
        tiny_folder, tmp_path / "i.png", "invert", "--images", pictures[0], "--steps", "3", "--edit", "a blue cup"
    )
    assert max(again["state_error"]) < 1e-5 and again["pixel_error"] != again["codec_error"]


def test_tracing_drift_and_text_of_drawings(tiny_folder, tmp_path):
    sites = ["--sites", "conv_out", "mid_block", "--windows", "0-1"]
    for lens in ("trace", "patch"):
        found = look(tiny_folder, tmp_path / f"{lens}.png", lens, *DRAW, "--corrupt", "a blue cup", *sites)
        assert found["effect"][0] == [[1.0, 1.0]] and len(found["sites"]) == 2
    noisy = look(tiny_folder, tmp_path / "n.png", "trace", *DRAW, "--noise", "3", *sites)
    assert noisy["effect"][0] == [[1.0, 1.0]]
    drift = look(tiny_folder, tmp_path / "d.png", "drift", *DRAW, "--sites", "mid_block")
    assert np.shape(drift["cka"]["unet.mid_block:out"]) == (2, 2)
    layers = look(tiny_folder, tmp_path / "t.png", "text", *DRAW)
    assert layers["layers"] == [0, 1] and "judge" not in layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "--words", "star"], "give --prompt, or --images"),
        (["attention", *DRAW, "--words", "moon"], "'moon' does not occur"),
        (["attention", *DRAW, "--words", "star", "--by", "head"], "name one of --sites"),
        (["trace", *DRAW, "--sites", "mid_block"], "give --corrupt PROMPT or --noise SCALE"),
        (["trace", *DRAW, "--sites", "mid_block", "--corrupt", "a", "--concept", "object=star"], "of canvas"),
        (["text", *DRAW, "--layers", "7"], "has layers 0 to 1"),
        (["segment", "--images", "canvas:x"], "expected canvas:N"),
        (["features", "--images", "nothing.png", "nothing.png"], "nothing.png"),
    ],
)
def test_mistakes_are_one_line(tiny_folder, tmp_path, capsys, arguments, message):
    out = tmp_path / "x.png"
    assert main(["lens", arguments[0], "--model", str(tiny_folder), "--out", str(out), *arguments[1:]]) == FAILED
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told and not out.exists()


def test_a_map_for_each_layer_step_or_head(tiny_folder, tmp_path):
    whole = look(tiny_folder, tmp_path / "a.png", "attention", *DRAW, "--words", "star", "--sites", ATTN)
    for by, parts in (("layer", 1), ("step", 2), ("head", 8)):
        given = [*DRAW, "--words", "star", "--sites", ATTN, "--by", by]
        found = look(tiny_folder, tmp_path / f"{by}.png", "attention", *given)
        assert len(found["by"]) == parts and found["maps"] == whole["maps"] and not whole["by"]
        np.testing.assert_allclose(np.mean(list(found["by"].values()), 0), whole["maps"], rtol=1e-4)


def test_sheets_show_what_they_are_given():
    table = number_table(np.array([[0.0, 1.0], [np.nan, 0.5]]), ["a", "b"], ["c", "d"], title="t")
    assert table.dtype == np.uint8 and len(np.unique(table.reshape(-1, 3), axis=0)) > 3
    half = number_table(np.array([[0.5]]), [""], [""], title="", top=1.0)
    assert (half == heat_colours(np.asarray(0.5))).all(-1).sum() >= 48 * 48  # coloured on the scale that was given
    image = np.full((8, 8, 3), 100, np.uint8)
    marked = dotted(image, np.array([[0.25, 0.75]]), side=64)
    assert (marked[48, 16] != 100).any() and (marked[16, 48] == 100).all()
    halves = segment_sheet(image[None], [np.array([[0, 1], [0, 1]])], ["wide words for a caption that is wrapped"])
    body = np.unique(halves.reshape(-1, 3), axis=0).tolist()
    assert all(
        (0.45 * np.full(3, 100) + 0.55 * colour).astype(int).tolist() in body for colour in SEGMENTS[:2].astype(float)
    )
    sheet = word_sheet(image[None], np.zeros((1, 1, 2, 2)), [["star"]], ["row"])
    assert sheet.shape[2] == 3
