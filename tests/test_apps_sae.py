"""``denoscope sae`` from the command line: measure, compare, convert, refuse."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sae_world import SITE, World, plant
from safetensors.torch import save_file

from activations_store import ActivationStore
from apps.cli import build_parser, main
from apps.dictionaries.evaluate import split_half
from apps.errors import InvalidFile
from apps.measurement import read_measurement
from apps.object_masks import object_masks
from sae import SAEConfig, TopKSAE, load_sae, save_sae
from sae.evaluation.decoder_cosines import cosine_histogram


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run with the planted store and two dictionaries of its planted features."""
    run = tmp_path_factory.mktemp("runs") / "x"
    made = plant(run / "store", n_samples=32, n_steps=2, n_features=16)
    for name, seed in (("one", 0), ("two", 1)):
        order = np.random.default_rng(seed).permutation(16)
        sae = TopKSAE(SAEConfig(d_in=24, d_sae=16, k=16, site=SITE))
        with torch.no_grad():
            sae.W_dec.copy_(torch.from_numpy(made.features[order]))
            sae.W_enc.copy_(torch.from_numpy(np.linalg.pinv(made.features)[:, order]))
            sae.b_enc.fill_(-1e-4)
            sae.b_dec.copy_(torch.from_numpy(made.mean))
        save_sae(sae, run / "sae" / name)
    return made


def run_of(world: World) -> Path:
    return world.store.path.parent


def test_eval_writes_numbers_and_a_page_that_loads_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_of(world) / "all.json"
    assert main(["sae", "eval", str(run_of(world)), "--grid", "--out", str(out)]) == 0
    record = read_measurement(out)
    parts = {row["part"] for row in record["rows"]}
    assert parts == {"reconstruction", "step", "branch", "cosine", "recovery", "concept", "grid"}
    assert record["ratios"]["one_explained_variance"] > 0.999
    recovery = {(r["dictionary"], r["units"]): r for r in record["rows"] if r["part"] == "recovery"}
    assert {u for _, u in recovery} == {"features", "untrained", "PCA", "random", "neurons"}
    assert recovery["one", "features"]["auc"] > recovery["one", "neurons"]["auc"]
    objects = [
        r for r in record["rows"] if r["part"] == "concept" and r["units"] == "features" and r["factor"] == "object"
    ]
    assert [r["auc"] for r in objects] == [1.0] * 8
    grid = [r for r in record["rows"] if r["part"] == "grid" and r["factor"] == "object"]
    assert [r["step"] for r in grid] == [0, 1]
    assert all(r["probe"] > r["chance"] for r in grid)

    page = out.with_suffix(".html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=[\"']https?:", page)
    assert page.count("<figure") == 8  # 2 on reconstruction, 1 a dictionary, 2 a factor
    printed = capsys.readouterr().out
    assert "EV about zero" in printed
    assert "rows (" in printed.splitlines()[0]  # the estimate comes first
    assert not (run_of(world) / "all.json.parts").exists()


@pytest.mark.parametrize("action", ["eval", "compare", "convert"])
def test_examples_in_help_are_valid_command_lines(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sae", action, "--help"])
    text = capsys.readouterr().out
    assert "None" not in text
    for line in text.split("example:\n")[1].strip().splitlines():
        words = shlex.split(line)
        assert words[:3] == ["denoscope", "sae", action]
        build_parser().parse_args(words[1:])


def test_an_interrupted_evaluation_goes_on(world: World, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = run_of(world) / "resumed.json"
    command = ["sae", "eval", str(run_of(world)), "--sae", "one", "--no-report", "--out", str(out)]
    with monkeypatch.context() as patched:
        rows = "apps.dictionaries.evaluate.recovery_rows"
        patched.setattr(rows, lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 130
    assert main(command) == 0
    assert "reconstruction: done before" in capsys.readouterr().out
    assert out.is_file()
    assert not out.with_suffix(".html").exists()


def test_a_dry_run_writes_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run_of(world).iterdir())
    assert main(["sae", "eval", str(run_of(world)), "--grid", "--substitute", "8", "--dry-run"]) == 0
    assert "8 generations of 16 denoiser calls a step" in capsys.readouterr().out
    assert sorted(run_of(world).iterdir()) == before


def test_compare(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = run_of(world), tmp_path / "s.json"
    assert main(["sae", "compare", str(run / "sae/one"), str(run / "sae/two"), "--out", str(out)]) == 0
    (row,) = read_measurement(out)["rows"]
    assert row["decoder_mean"] == pytest.approx(1.0, abs=1e-4)
    assert row["activation_shared"] == 1.0 > row["activation_null_shared"]
    assert "untrained" in capsys.readouterr().out


def test_convert_and_evaluate_another_librarys_folder(world: World, tmp_path: Path, capsys) -> None:
    ours, their = load_sae(run_of(world) / "sae/one"), tmp_path / "their"
    their.mkdir()
    tensors = {"encoder.weight": ours.W_enc.T, "encoder.bias": ours.b_enc, "W_dec": ours.W_dec, "b_dec": ours.b_dec}
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, their / "sae.safetensors")
    (their / "cfg.json").write_text(json.dumps({"k": 16, "d_in": 24, "activation": "topk"}))
    assert main(["sae", "convert", str(their), str(tmp_path / "new"), "--site", "mid_block"]) == 0
    assert load_sae(tmp_path / "new").config.site == SITE
    assert main(["sae", "convert", str(their), str(tmp_path / "new")]) == 2  # it is there already
    command = ["sae", "eval", str(their), "--store", str(run_of(world)), "--no-concepts", "--no-report"]
    assert main([*command, "--out", str(tmp_path / "e.json")]) == 0
    assert read_measurement(tmp_path / "e.json")["ratios"]["their_explained_variance"] > 0.999
    capsys.readouterr()
    assert main(command[:3]) == 2
    assert "give the one with its rows as --store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sae", "three"], "no dictionary 'three'"),
        (["--factors", "mood"], "no labels of 'mood'"),
        (["--out", "RUN/store/store.json"], "exists already"),
    ],
)
def test_mistakes_are_told_in_one_line(world: World, arguments: list[str], message: str, capsys) -> None:
    given = [a.replace("RUN", str(run_of(world))) for a in arguments]
    assert main(["sae", "eval", str(run_of(world)), *given]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_eval_with_a_model_in_the_loop(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Collect, train, evaluate with each of two dictionaries in the place of the one site that they explain."""
    prompts, run = tmp_path / "p.csv", tmp_path / "run"
    lines = [f"a {c} {o},{o}" for c in ("red", "blue", "green") for o in ("star", "moon", "cup")]
    prompts.write_text("prompt,object\n" + "\n".join(lines * 2) + "\n")
    collect = ["collect", "--model", str(tiny_folder), "--sites", "mid_block", "--prompts", str(prompts)]
    assert main([*collect, "--out", str(run), "--no-images"]) == 0
    assert main(["train", str(run), "--expansion", "2", "--k", "2", "4", "--rows", "2000", "--batch-size", "256"]) == 0
    assert main(["sae", "eval", str(run), "--substitute", "3", "--no-concepts", "--model", str(tiny_folder)]) == 0
    rows = read_measurement(run / "sae_eval.json")["rows"]
    few, many = [r for r in rows if r["part"] == "substitution"]
    assert few["dictionary"] != many["dictionary"]
    assert few["loss_zero"] == many["loss_zero"] > 0
    assert few["recovered_over_zero"] != many["recovered_over_zero"] <= 1
    steps = [r for r in rows if r["part"] == "substitution step" and r["dictionary"] == few["dictionary"]]
    assert [r["step"] for r in steps] == [0, 1, 2, 3]
    assert {r["variant"] for r in rows if r["part"] == "images"} == {"sae", "mean", "zero"}
    assert "Loss recovered" in (run / "sae_eval.html").read_text()


def test_masks_of_a_store(world: World, tmp_path: Path) -> None:
    import pyarrow as pa

    store = ActivationStore.open(world.store.path)
    assert object_masks(store, SITE, np.arange(3)) is None  # this one has none

    class Masked:
        path, samples, site = tmp_path, pa.table({"mask": ["000000.png", "", "../x.png"]}), store.site

    (tmp_path / "masks").mkdir()
    drawn = np.zeros((64, 64), np.uint8)
    drawn[:16, 16:32] = 255
    drawn[32:48, :7] = 255  # less than half of a cell
    Image.fromarray(drawn).save(tmp_path / "masks/000000.png")
    masked: object = Masked()
    found = object_masks(masked, SITE, np.arange(2))  # type: ignore[arg-type]
    assert found is not None
    assert found.sum(1).tolist() == [1, 0]
    assert found[0, 1]
    with pytest.raises(InvalidFile, match="no name of a mask"):
        object_masks(masked, SITE, np.arange(3))  # type: ignore[arg-type]
    (tmp_path / "masks/000000.png").write_bytes(b"no image")
    with pytest.raises(InvalidFile, match="cannot be read"):
        object_masks(masked, SITE, np.arange(1))  # type: ignore[arg-type]


def test_decoder_cosines_against_all_pairs() -> None:
    decoder = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    decoder[7] = 2 * decoder[3]
    found = cosine_histogram(decoder, n_bins=10)
    unit = torch.nn.functional.normalize(decoder, dim=1)
    cosines = (unit @ unit.T).clamp(-1, 1).numpy()
    upper = cosines[np.triu_indices(50, 1)]
    np.testing.assert_array_equal(found.pairs, np.histogram(upper, found.edges)[0])
    np.fill_diagonal(cosines, -1)
    np.testing.assert_array_equal(found.nearest, np.histogram(cosines.max(1), found.edges)[0])
    assert found.pairs.sum() == 50 * 49 / 2
    assert found.above == (upper > 0.9).sum() >= 1


def test_halves_are_even_and_repeatable() -> None:
    assert split_half(11, 3).sum() == 6
    np.testing.assert_array_equal(split_half(11, 3), split_half(11, 3))
