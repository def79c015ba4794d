"""denoscope info: every question end to end on a folder of images, and what it refuses."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.cli import FAILED, build_parser, main
from apps.information.subject import canvas_subject, class_texts, word_columns
from apps.measurement import read_measurement

OTHERS = ["a blue cup", "a red cup"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small pictures with prompts, masks and two labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = []
    for i, (colour, thing) in enumerate([("red", "star"), ("blue", "cup"), ("red", "cup"), ("blue", "star")]):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        mask = np.zeros((40, 40), np.uint8)
        mask[10:30, 10:30] = 255
        Image.fromarray(mask).save(folder / f"mask-{i}.png")
        rows.append([f"{i}.png", f"a {colour} {thing}", f"mask-{i}.png", colour, thing, "photograph"])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "prompt", "mask", "colour", "thing", "kind"], *rows])
    return folder


def info(tiny_folder: Path, photos: Path, out: Path, *options: str) -> int:
    given = ["--model", str(tiny_folder), "--images", str(photos), "--nodes", "3", "--out", str(out)]
    return main(["info", *options, *given])


def test_words_of_a_folder_resume_and_have_maps(tiny_folder, photos, tmp_path, capsys):
    assert info(tiny_folder, photos, tmp_path, "mi", "--dry-run") == 0
    printed = capsys.readouterr().out
    # empty, caption, shuffled, and four columns of each label that stands in every prompt less the pair
    assert "4 images x 3 noise levels x 9 conditions = 108 denoiser evaluations, about" in printed
    assert not (tmp_path / "tables").exists()
    assert info(tiny_folder, photos, tmp_path, "mi") == 0
    printed = capsys.readouterr().out
    found = read_measurement(tmp_path / "mi.json")
    assert [row["of"] for row in found["rows"]] == ["caption", "colour", "thing"]
    assert found["rows"][0]["null"] is not None and "caption" in printed
    assert (tmp_path / "mi.png").stat().st_size > 1000
    page = (tmp_path / "mi.html").read_text()
    for method in ("mask", "MI", "CMI", "null", "guidance difference", "attention", "gradient x attention"):
        assert f">{method}<" in page
    table = tmp_path / "tables" / "words"
    before = {p: p.stat().st_mtime_ns for p in table.rglob("*") if p.is_file()}
    assert info(tiny_folder, photos, tmp_path, "cmi", "--form", "orthogonal") == 0  # the same table
    assert {p: p.stat().st_mtime_ns for p in table.rglob("*") if p.is_file()} == before
    rows = read_measurement(tmp_path / "cmi.json")["rows"]
    assert [row["given"] for row in rows] == ["caption-colour", "caption-thing"]
    assert all(row["value"] >= 0 and row["null"] >= 0 for row in rows)


def test_pairs_likelihood_and_classes(tiny_folder, photos, tmp_path, capsys):
    assert info(tiny_folder, photos, tmp_path, "pid", "--context") == 0
    rows = {row["of"]: row["value"] for row in read_measurement(tmp_path / "pid.json")["rows"]}
    whole = rows["redundancy"] + rows["unique colour"] + rows["unique thing"] + rows["synergy"]
    assert whole == pytest.approx(rows["both"])
    assert info(tiny_folder, photos, tmp_path, "nll") == 0
    rows = read_measurement(tmp_path / "nll.json")["rows"]
    assert [row["of"] for row in rows] == ["empty", "caption"] and all(np.isfinite(r["value"]) for r in rows)
    assert info(tiny_folder, photos, tmp_path, "classify", "--words", "colour", "--template", "a {} thing") == 0
    rows = {row["of"]: row for row in read_measurement(tmp_path / "classify.json")["rows"]}
    assert rows["accuracy"]["null"] == 0.5 and rows["information"]["entropy"] == pytest.approx(np.log(2))
    assert {rows[f"image {i}"]["label"] for i in range(4)} == {"red", "blue"}


def test_one_image_with_captions_for_the_null(tiny_folder, photos, tmp_path, capsys):
    options = ["cmi", "--caption", "a red star", "--words", "star", "--others", *OTHERS]
    assert info(tiny_folder, photos / "0.png", tmp_path, *options) == 0
    (row,) = read_measurement(tmp_path / "cmi.json")["rows"]
    assert (row["of"], row["n"]) == ("star", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["pid", "--words", "colour"], "1 words (colour); choose two with --words"),
        (["classify"], "2 words (colour, thing); choose one"),
        (["mi", "--words", "kind"], "no words for 'kind'; expected labels whose value stands once in every prompt, of"),
        (["cmi", "--words", "star"], "no words for 'star'"),
        (["mi", "--absent", "thing"], "expected LABEL=TEXT"),
        (["mi", "--absent", "animal=thing"], "--absent animal=...: no such label; expected of colour, thing"),
        (["mi", "--others", "a red cup"], "--caption and --others are for one image file"),
        (["classify", "--words", "thing", "--template", "a cup"], "expected one {} for the word"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_table(tiny_folder, photos, tmp_path, capsys, options, message):
    assert info(tiny_folder, photos, tmp_path, *options) == FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
    ("caption", "word", "message"),
    [
        ("a red star", "cup", "'cup' stands 0 times in --caption 'a red star'"),
        ("a red red star", "red", "'red' stands 2 times in --caption"),
        ("a red star", "re", "'re' stands 0 times"),
    ],
)
def test_words_that_the_caption_does_not_have_once(tiny_folder, photos, tmp_path, capsys, caption, word, message):
    options = ["cmi", "--caption", caption, "--words", word, "--others", *OTHERS]
    assert info(tiny_folder, photos / "0.png", tmp_path, *options) == FAILED
    assert message in capsys.readouterr().err and not (tmp_path / "tables").exists()


def test_distilled_models_are_refused_before_anything_runs(tiny_pipe, photos, tmp_path, capsys):
    from diffusers import LCMScheduler, StableDiffusionPipeline

    parts = {**tiny_pipe.components, "scheduler": LCMScheduler(steps_offset=1)}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert info(tmp_path / "model", photos, tmp_path / "out", "mi") == FAILED
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("denoscope")]
    assert len(lines) == 1 and "is guidance-distilled (its scheduler is LCMScheduler)" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["mi", "cmi", "pid", "nll", "classify", "site"])
def test_every_question_shows_a_valid_example(what, capsys):
    with pytest.raises(SystemExit):
        main(["info", what, "--help"])
    for line in capsys.readouterr().out.split("example:\n")[1].strip().splitlines():
        words = shlex.split(line)
        assert words[:3] == ["denoscope", "info", what]
        build_parser().parse_args(words[1:])


def test_sources_that_mean_nothing(tiny_folder, photos, tmp_path, capsys):
    for source, message in (
        ("canvas:x", "expected canvas:N"),
        ("canvas:1", "N of at least 2"),
        ("canvas:2", "renders of canvas have 64 pixels a side, the model draws 16"),
        (str(next(photos.glob("*.png"))), "needs --caption"),
        (str(photos / "9.png"), "there is no file or folder"),
    ):
        given = ["--model", str(tiny_folder), "--images", source, "--out", str(tmp_path)]
        assert main(["info", "mi", *given]) == FAILED
        assert message in capsys.readouterr().err


def test_canvas_captions_are_said_anew_without_a_word():
    subject = canvas_subject(3, 0).only(["object"])
    found = {c.name: c.conds for c in word_columns(subject)}
    assert set(found) == {"empty", "caption", "shuffled", "caption-object", "swap:object", "word:object"}
    assert found["caption"] == subject.captions
    assert found["caption-object"] == [
        c.replace(f" {w} ", " thing ") for c, w in zip(subject.captions, subject.words["object"], strict=True)
    ]
    assert found["word:object"] == [f"a {w}" for w in subject.words["object"]]
    texts = class_texts(subject.only(["object"]), "object", None)
    assert len(texts) == 12 and texts["star"] == "a star"
