"""The command line: a small collection from end to end, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.cli import FAILED, main

SITE = "unet.mid_block:out"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The message of a command line that must fail with one line on stderr."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("denoscope")]
    assert code == FAILED and len(lines) == 1
    assert lines[0].startswith("denoscope: error: ") and "Traceback" not in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labelled prompts."""
    path = tmp_path_factory.mktemp("prompts") / "six.csv"
    rows = [f"a {colour} {thing},{thing},{colour}" for thing in ("star", "moon", "cup") for colour in ("red", "blue")]
    path.write_text("prompt,object,colour\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tiny_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny model, made through the command line: store, dictionary, bundle."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    collect = ["collect", "--model", tiny_folder, "--sites", "mid_block", "--prompts", prompts, "--out", folder]
    train = ["train", folder, "--d-sae", "32", "--k", "4", "--rows", "2048", "--batch-size", "256"]
    for arguments in (collect, train, ["features", folder]):
        assert main([str(argument) for argument in arguments]) == 0
    return folder


def test_a_run_is_made_and_made_again_for_nothing(
    run: Path, tiny_folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from apps.runs import Run
    from sae import FeatureBundle

    found = Run.open(run)
    assert list(found.saes()) == list(found.bundles()) == ["mid_block"]
    assert FeatureBundle.open(found.bundle()).factors == ("colour", "object")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    arguments = ["collect", "--model", tiny_folder, "--sites", "mid_block", "--prompts", prompts, "--out", run]
    assert main([str(argument) for argument in arguments]) == 0
    assert "6 of 6 samples are there already" in capsys.readouterr().out
    assert main(["features", str(run)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("star", "moon", "cup", "red", "blue", "AUC"))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_dry_run_says_the_size_and_writes_nothing(
    tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    arguments = ["collect", "--model", tiny_folder, "--sites", "mid_block", "up_blocks.0", "--prompts", prompts]
    assert main([str(a) for a in [*arguments, "--out", out, "--dry-run"]]) == 0
    text = capsys.readouterr().out
    assert "6 samples x 4 steps x 2 branches" in text and "unet.up_blocks.0:out" in text
    assert "cheaper, each alone: " in text and "--branches cond " in text and "--pool mean " in text
    assert not out.exists()


def test_steer_pushes_features_of_a_run(
    run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from apps.images import read_image
    from sae import FeatureBundle

    bundle = FeatureBundle.open(run / "bundle" / "mid_block")
    feature = max(range(bundle.n_features), key=lambda f: bundle.stats(f)["density"])
    out = tmp_path / "sweep"
    arguments = ["steer", "--sae", run / "sae" / "mid_block", "--feature", feature, "--strengths", "-2", "2"]
    arguments += ["--prompt", "a red star", "--seeds", "0", "--model", tiny_folder, "--side", "32"]
    assert main([str(a) for a in [*arguments, "--out", out]]) == 0
    assert "= 5 images" in capsys.readouterr().out  # unedited, down, up, and the random control down and up
    assert read_image(out / "grid.png").shape[0] > 64
    other = [*arguments, "--seeds", "1", "--out", out]
    assert "another sweep" in complaint(capsys, *other)


def test_generate_applies_a_recipe(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from apps.images import read_image
    from apps.steering.push import feature_push
    from probe.interventions import Recipe
    from probe.model import load_pipeline
    from sae import load_sae

    pipe = load_pipeline(tiny_folder)
    push = feature_push(load_sae(run / "sae" / "mid_block"), [0], None)
    recipe = Recipe.of(pipe, [push.edit(50.0)]).save(tmp_path / "recipe")
    shapes = []
    for extra in ([], ["--recipe", recipe]):
        out = tmp_path / f"{len(shapes)}.png"
        arguments = [
            "generate",
            "--model",
            tiny_folder,
            "--prompt",
            "a red star",
            "--seeds",
            "0",
            "1",
            "--out",
            out,
            *extra,
        ]
        assert main([str(argument) for argument in arguments]) == 0
        shapes.append(read_image(out).shape)
    assert shapes[1][0] > shapes[0][0]  # the edited row stands below the unedited one


class TestMistakes:
    """Bad input gets one line, before work starts."""

    def test_unknown_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = complaint(capsys, "collect", "--model", "./nowhere", "--sites", "mid_block", "--out", tmp_path / "x")
        assert "no folder './nowhere'" in message

    def test_unknown_site(
        self, tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "x"
        message = complaint(
            capsys, "collect", "--model", tiny_folder, "--sites", "mid_blok", "--prompts", prompts, "--out", out
        )
        assert "no module 'unet.mid_blok'" in message and "unet.mid_block" in message
        assert not out.exists()

    def test_settings_that_exclude_each_other(
        self, tiny_folder: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = [
            "collect",
            "--model",
            tiny_folder,
            "--sites",
            "mid_block",
            "--prompts",
            prompts,
            "--out",
            tmp_path / "x",
        ]
        message = complaint(capsys, *asked, "--tokens", "4", "--pool", "mean")
        assert "--tokens 4 and --pool mean exclude each other" in message

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [("empty.txt", "\n# nothing\n", "no prompts"), ("bad.csv", "text\nx\n", "no column 'prompt'")],
    )
    def test_bad_prompt_file(
        self, name: str, content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / name
        path.write_text(content)
        out = tmp_path / "x"
        message = complaint(capsys, "collect", "--sites", "mid_block", "--prompts", path, "--out", out)
        assert expected in message and name in message
        assert not out.exists()

    @pytest.mark.parametrize("spec", ["canvas:0", "canvas:many", "nowhere.txt"])
    def test_bad_prompt_name(self, spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert spec in complaint(capsys, "collect", "--sites", "mid_block", "--prompts", spec, "--out", tmp_path / "x")

    def test_existing_store_of_another_plan(
        self, run: Path, tiny_folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = complaint(
            capsys,
            *("collect", "--model", tiny_folder, "--sites", "up_blocks.0", "--prompts", prompts, "--out", run),
        )
        assert "holds another collection" in message and "unet.up_blocks.0:out" in message and SITE in message

    def test_no_store(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "store.json" in complaint(capsys, "train", tmp_path)

    def test_site_that_the_store_does_not_hold(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = complaint(capsys, "train", run, "--site", "up_blocks.0")
        assert "no site 'up_blocks.0'" in message and SITE in message

    def test_existing_dictionary_of_other_settings(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = complaint(capsys, "train", run, "--d-sae", "64", "--k", "4")
        assert "holds another run" in message and "d_sae" in message

    def test_dictionary_of_another_site(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        import shutil

        from sae import SAEConfig, TopKSAE, save_sae

        other = tmp_path / "other"
        shutil.copytree(run / "store", other / "store")
        save_sae(TopKSAE(SAEConfig(d_in=16, d_sae=32, k=4, site="unet.up_blocks.0:out")), other / "sae")
        message = complaint(capsys, "features", other)
        assert "was trained at site unet.up_blocks.0:out" in message and SITE in message

    def test_dictionary_of_another_model(
        self, run: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from probe.model import load_pipeline

        pipe = load_pipeline(tiny_folder)
        pipe.unet.conv_out.bias += 1  # type: ignore[attr-defined]
        pipe.save_pretrained(tmp_path / "changed", safe_serialization=True)
        message = complaint(
            capsys,
            *("steer", "--sae", run / "sae" / "mid_block", "--feature", "0", "--unit", "raw", "--prompt", "a red star"),
            *("--model", tmp_path / "changed", "--out", tmp_path / "x.png"),
        )
        assert "made with model 'tiny'" in message and "'changed'" in message and "weights_hash" in message

    def test_no_dictionary(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = complaint(
            capsys, "steer", "--sae", tmp_path, "--feature", "0", "--prompt", "x", "--out", tmp_path / "x.png"
        )
        assert "not an SAE folder" in message
        assert "choose one of: mid_block" in complaint(capsys, "features", run, "--sae", "no")

    def test_unknown_feature_factor_and_concept(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sae, out = run / "sae" / "mid_block", tmp_path / "x.png"
        assert "it has 0 to 31" in complaint(
            capsys, "steer", "--sae", sae, "--feature", "32", "--prompt", "x", "--out", out
        )
        assert "object, colour" in complaint(capsys, "features", run, "--factors", "style")
        assert "canvas has no object 'dragon'" in complaint(capsys, "unlearn", "--run", run, "--object", "dragon")
        assert "canvas has no style 'baroque'" in complaint(
            capsys, "demo", "--style", "baroque", "--out", tmp_path / "d"
        )

    def test_nothing_asked_for(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nothing to unlearn" in complaint(capsys, "unlearn", "--run", run)
        assert "there is no prompt" in complaint(capsys, "generate", "--out", tmp_path / "x.png")

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "does not exist" in complaint(capsys, "features", tmp_path / "nowhere")
        assert "holds no run" in complaint(capsys, "app", tmp_path)
        assert "holds no store" in complaint(capsys, "unlearn", "--run", tmp_path, "--object", "star")
        assert "nowhere' does not exist" in complaint(capsys, "sae", "eval", tmp_path / "nowhere")

    def test_bad_device_and_seed(self, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "x.png"
        base = ("generate", "--model", tiny_folder, "--prompt", "a red star", "--out", out)
        assert "--device quantum" in complaint(capsys, *base, "--device", "quantum")
        assert "seeds are whole numbers" in complaint(capsys, *base, "--seeds", "-1")
        assert "on a CPU use float32 or bfloat16" in complaint(capsys, *base, "--precision", "float16")


def test_features_without_labels_are_listed_by_what_they_explain(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "plain.txt", tmp_path / "x"
    path.write_text("a red star\na blue moon\n")
    arguments = ["collect", "--model", tiny_folder, "--sites", "mid_block", "--prompts", path, "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    assert main(["train", str(out), "--d-sae", "16", "--k", "2", "--rows", "256", "--batch-size", "64"]) == 0
    capsys.readouterr()
    assert main(["features", str(out)]) == 0
    printed = capsys.readouterr().out
    explains = [float(line.split()[1].rstrip("%")) for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert len(explains) == 10 and explains == sorted(explains, reverse=True) and explains[0] > 0
    assert "no labels" in printed
    assert "it has no labels" in complaint(capsys, "features", out, "--factors", "object")


def test_rounded_weights_are_recorded_and_another_model(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from activations_store import ActivationStore

    (tmp_path / "one.txt").write_text("a red star\n")
    base = ("collect", "--model", tiny_folder, "--sites", "mid_block", "--prompts", tmp_path / "one.txt")
    rounded = [str(argument) for argument in (*base, "--out", tmp_path / "run", "--precision", "bfloat16")]
    assert main(rounded) == 0
    assert ActivationStore.open(tmp_path / "run" / "store").fingerprint["dtype"] == "bfloat16"
    assert "weights_hash" in complaint(capsys, *base, "--out", tmp_path / "run")


def test_real_images_are_collected_and_trained_on(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from PIL import Image

    from activations_store import ActivationStore

    rng = np.random.default_rng(0)
    for i in range(4):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        picture.save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    out = tmp_path / "run"
    arguments = ["collect", "--model", tiny_folder, "--sites", "mid_block", "--images", tmp_path / "photos"]
    arguments += ["--log-snr", "-3", "1.5", "--tokens", "8", "--out", out]
    assert main([str(a) for a in [*arguments, "--dry-run"]]) == 0 and not out.exists()
    assert "4 samples x 2 steps x 1 branches" in capsys.readouterr().out
    assert main([str(a) for a in arguments]) == 0
    assert "log-SNR -3, 1.5" in capsys.readouterr().out
    store = ActivationStore.open(out / "store")
    assert store.site(SITE).spec.tokens == 8 and list(store.labels("folder")) == ["a", "a", "b", "b"]
    assert main(["train", str(out), "--d-sae", "32", "--k", "4", "--rows", "64", "--batch-size", "16"]) == 0
    message = complaint(capsys, *arguments, "--steps", "3")
    assert "--steps is for generated images" in message
    message = complaint(capsys, *arguments[:7], "--out", tmp_path / "other")
    assert "--images needs --log-snr" in message
    message = complaint(capsys, *arguments[:5], "--log-snr", "0", "--out", tmp_path / "other")
    assert "give --images FOLDER too" in message


def test_recorded_steps_and_flags_reach_the_store(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    from activations_store import ActivationStore

    arguments = ["collect", "--model", tiny_folder, "--sites", "mid_block", "--prompts", prompts, "--no-images"]
    arguments += ["--record-steps", "1,3", "--pool", "mean", "--on-nonfinite", "flag", "--out", tmp_path / "run"]
    assert main([str(a) for a in arguments]) == 0
    store = ActivationStore.open(tmp_path / "run" / "store")
    assert store.spec.n_steps == 2 and store.site(SITE).spec.tokens == 1
    assert store.plan["record_steps"] == [1, 3] and store.plan["on_nonfinite"] == "flag"
    assert not (tmp_path / "run" / "store" / "images").exists()
