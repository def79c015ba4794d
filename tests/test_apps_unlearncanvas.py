"""UnlearnCanvas from folders: names, classifiers, data set, and the benchmark on a tiny model with the real layout."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from unlearncanvas_world import tiny_vit, write_classifiers, write_data, write_model

from apps.bench.unlearn.bench import bench_unlearn
from apps.bench.unlearn.config import UnlearnBench
from apps.bench.unlearn.world import chosen_targets
from apps.cli import FAILED, main
from apps.errors import InvalidFile, InvalidOption, OutputExists
from apps.unlearncanvas.data import UnlearnCanvasData
from apps.unlearncanvas.judge import SHARE, UnlearnCanvasJudge, Verdict
from apps.unlearncanvas.protocol import OBJECTS, PHOTOGRAPH, SEEDS, STYLES, caption
from apps.unlearncanvas.vit import ViT, to_pixels
from apps.unlearncanvas.world import UnlearnCanvasWorld, load_model
from apps.unlearning.edits import Sampling
from apps.unlearning.place import Place

SAMPLING = Sampling(2, 2.0, 8)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifiers(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "style50")


def test_names_are_those_of_the_benchmark() -> None:
    assert (len(STYLES), len(OBJECTS), len(SEEDS)) == (51, 20, 5)
    assert list(STYLES) == sorted(STYLES) and list(OBJECTS) == sorted(OBJECTS)
    assert caption({"object": "Dogs", "style": "Van_Gogh"}) == "A Dogs image in Van Gogh style."


class TestClassifier:
    def test_computes_what_transformers_computes(self) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        net = tiny_vit(5)
        sizes: dict[str, Any] = {
            "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96,
            "image_size": 32, "patch_size": 16, "num_labels": 5, "layer_norm_eps": 1e-6,
        }  # fmt: skip
        oracle = ViTForImageClassification(ViTConfig(**sizes)).eval()
        names = {
            "vit.embeddings.cls_token": "cls_token",
            "vit.embeddings.position_embeddings": "pos_embed",
            "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
            "vit.layernorm": "norm",
            "classifier": "head",
        }
        parts = {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj"}
        parts |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        tensors, found = net.state_dict(), {}
        for theirs in oracle.state_dict():
            stem, _, kind = theirs.rpartition(".")
            if theirs in names:
                found[theirs] = tensors[names[theirs]]
            elif stem in names:
                found[theirs] = tensors[f"{names[stem]}.{kind}"]
            else:
                number, _, part = stem.removeprefix("vit.layers.").partition(".")
                if part in parts:
                    found[theirs] = tensors[f"blocks.{number}.{parts[part]}.{kind}"]
                else:
                    at = ("q_proj", "k_proj", "v_proj").index(part.removeprefix("attention."))
                    found[theirs] = tensors[f"blocks.{number}.attn.qkv.{kind}"].chunk(3)[at]
        oracle.load_state_dict(found)
        pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(net(pixels), oracle(pixels).logits, rtol=1e-4, atol=1e-4)

    def test_reads_its_shape_from_the_file(self, classifiers: Path) -> None:
        net = ViT.load(classifiers / "style.safetensors")
        assert (net.side, len(net.blocks), net.head.out_features) == (32, 2, 51)

    def test_pixels_are_scaled_to_minus_one_and_one(self) -> None:
        images = np.stack([np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 255, np.uint8)])
        pixels = to_pixels(images, 32)
        assert pixels.shape == (2, 3, 32, 32)
        assert pixels[0].unique().tolist() == [-1.0] and pixels[1].unique().tolist() == [1.0]

    def test_says_how_a_pickle_is_converted_and_never_reads_it(self, tmp_path: Path) -> None:
        torch.save({"model_state_dict": {}}, tmp_path / "style50.pth")
        with pytest.raises(FileNotFoundError, match=r"weights_only=True.*model_state_dict") as told:
            UnlearnCanvasJudge.load(tmp_path)
        assert "style50.pth" in str(told.value)

    def test_the_told_conversion_works(self, tmp_path: Path, classifiers: Path) -> None:
        import subprocess

        from safetensors.torch import load_file

        tensors = load_file(classifiers / "object.safetensors")
        torch.save({"model_state_dict": tensors, "epoch": 3}, tmp_path / "cls model.pth")
        with pytest.raises(FileNotFoundError) as told:
            ViT.load(tmp_path / "object.safetensors")
        command = (
            str(told.value).split("convert it once: ")[1].replace("python -c", f"{__import__('sys').executable} -c")
        )
        subprocess.run(command, shell=True, check=True, timeout=300)
        assert ViT.load(tmp_path / "object.safetensors").head.out_features == 20

    def test_refuses_other_files(self, tmp_path: Path, classifiers: Path) -> None:
        (tmp_path / "bad.safetensors").write_bytes(b"not one")
        with pytest.raises(InvalidFile, match="not a safetensors file"):
            ViT.load(tmp_path / "bad.safetensors")
        save_file({"conv.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(InvalidFile, match="timm's names"):
            ViT.load(tmp_path / "other.safetensors")
        save_file(dict(tiny_vit(7).state_dict()), tmp_path / "object.safetensors")
        save_file(dict(tiny_vit(51).state_dict()), tmp_path / "style.safetensors")
        with pytest.raises(InvalidFile, match="7 outputs; expected 20"):
            UnlearnCanvasJudge.load(tmp_path)


class TestJudge:
    def test_is_never_unsure_without_real_images(self, classifiers: Path) -> None:
        images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
        verdict = UnlearnCanvasJudge.load(classifiers)(images)
        assert not verdict.is_artifact.any()
        assert set(verdict.labels("style")) <= set(STYLES)
        np.testing.assert_allclose(verdict.probs["object"].sum(1), 1.0, rtol=1e-5)

    def test_calls_one_real_image_in_a_hundred_an_artifact_at_most(self, classifiers: Path) -> None:
        real = np.random.default_rng(1).integers(0, 255, (300, 16, 16, 3), np.uint8)
        judge = UnlearnCanvasJudge.load(classifiers).calibrated(real)
        share = judge(real).is_artifact.mean()
        assert 0 < share <= SHARE + 2 / 300  # a quantile between two images rounds by one for each classifier

    def test_an_image_is_an_artifact_where_either_classifier_is_unsure(self) -> None:
        sure, unsure = np.array([0.9, 0.1], np.float32), np.array([0.5, 0.5], np.float32)
        probs = {"object": np.stack([sure, unsure, sure]), "style": np.stack([sure, sure, unsure])}
        assert Verdict(probs, {"object": 0.6, "style": 0.7}).is_artifact.tolist() == [False, True, True]

    def test_features_are_both_class_tokens(self, classifiers: Path) -> None:
        images = np.zeros((2, 16, 16, 3), np.uint8)
        assert UnlearnCanvasJudge.load(classifiers).features(images).shape == (2, 256)


class TestData:
    def test_lists_images_in_the_order_of_style_object_and_number(self, data: Path) -> None:
        found = UnlearnCanvasData.open(data)
        assert len(found.files) == 18
        assert found.files[:3] == ("Monet/Cats/1.jpg", "Monet/Cats/2.jpg", "Monet/Cats/10.jpg")
        assert found.labels["object"][:4] == ("Cats", "Cats", "Cats", "Dogs")
        assert len(found.missing()) == 51 * 20 - 6

    def test_a_sample_is_balanced_and_repeatable(self, data: Path) -> None:
        found = UnlearnCanvasData.open(data)
        sample = found.sample(6, seed=3)
        assert sample.files == found.sample(6, seed=3).files and len(set(sample.files)) == 6
        assert all(sample.labels["style"].count(style) == 2 for style in ("Monet", "Van_Gogh", PHOTOGRAPH))
        assert sample.labels["object"].count("Dogs") == 3
        assert found.sample(99).files == found.files

    def test_images_are_cropped_to_squares(self, data: Path) -> None:
        images = UnlearnCanvasData.open(data).sample(2).images(16)
        assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8

    def test_its_table_is_what_a_collection_reads(self, data: Path) -> None:
        from probe.capture.image_files import read_images

        path = UnlearnCanvasData.open(data).write_table()
        found = read_images(data)
        assert len(found.files) == 18 and found.prompts[0] == "A Cats image in Monet style."
        assert set(found.labels) == {"object", "style"}
        assert len(list(csv.reader(path.read_text().splitlines()))) == 19
        with pytest.raises(OutputExists):
            UnlearnCanvasData.open(data).write_table()

    def test_refuses_a_folder_without_styles(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidFile, match="STYLE/OBJECT"):
            UnlearnCanvasData.open(tmp_path)


class TestWorld:
    @pytest.fixture
    def world(self, classifiers: Path) -> UnlearnCanvasWorld:
        return UnlearnCanvasWorld(SAMPLING, classifiers, None, n_recorded=1020)

    def test_the_test_grid_is_the_protocol(self, world: UnlearnCanvasWorld) -> None:
        assert len(world.test) == 51 * 20 * 5 and set(world.test.seeds) == set(SEEDS)
        assert len(chosen_targets(world, [])) == 70
        assert PHOTOGRAPH in world.test.labels["style"] and PHOTOGRAPH not in world.labels["style"]

    def test_recorded_validation_and_test_share_no_prompt(self, world: UnlearnCanvasWorld) -> None:
        validation = world.validation("style", "Monet", 20, 38)
        sets = [set(world.test.prompts), set(world.recorded.prompts), set(validation.prompts)]
        assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
        assert not set(validation.seeds) & set(SEEDS)
        assert validation.labels["style"].count("Monet") == 20 and len(set(validation.labels["object"])) == 20

    def test_every_pair_is_recorded_once_in_1020_prompts(self, world: UnlearnCanvasWorld) -> None:
        pairs = set(zip(world.recorded.labels["object"], world.recorded.labels["style"], strict=True))
        assert len(pairs) == 1020

    def test_places_that_lack_something_are_refused(self, classifiers: Path) -> None:
        with pytest.raises(InvalidOption, match="needs --model FOLDER"):
            Place("unlearncanvas", classifiers=classifiers)
        with pytest.raises(InvalidOption, match="leave out --classifiers"):
            Place(classifiers=classifiers)
        with pytest.raises(InvalidOption, match="expected one of canvas"):
            Place("moon")

    def test_attacks_and_audits_are_refused_before_work(
        self, model: Path, classifiers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        place = Place("unlearncanvas", str(model), classifiers)
        given: list[dict[str, Any]] = [{"attacks": ("paraphrase",)}, {"audit": True}]
        for options in given:
            with pytest.raises(InvalidOption, match="canvas only; leave out --attacks and --audit"):
                UnlearnBench(tmp_path / "work", ("no_edit",), (("object", "Dogs"),), place=place, **options)
        folders = ["--model", str(model), "--classifiers", str(classifiers), "--out", str(tmp_path / "o.json")]
        for asked in (["--attacks", "paraphrase"], ["--audit"]):
            assert main(["bench", "unlearn", "--world", "unlearncanvas", *folders, *asked]) == FAILED
            assert "know the words and pictures of canvas only" in capsys.readouterr().err
        assert not (tmp_path / "work").exists() and not (tmp_path / "o").exists()


class TestBenchmark:
    def test_the_model_draws_with_ddim(self, model: Path) -> None:
        pipe = load_model(model)
        assert type(pipe.scheduler).__name__ == "DDIMScheduler"
        assert pipe.scheduler.config["beta_end"] == 0.012

    @pytest.mark.slow
    def test_feature_edits_and_weights_are_scored(
        self, model: Path, classifiers: Path, data: Path, tmp_path: Path
    ) -> None:
        """Both targets, recorded at the paper's sites, with its dictionary cut down to a few thousand rows."""
        config = UnlearnBench(
            tmp_path / "work",
            ("no_edit", "random_direction", "uce", "saeuron"),
            (("object", "Dogs"), ("style", "Van_Gogh")),
            place=Place("unlearncanvas", str(model), classifiers, data, steps=2, guidance=2.0),
            n_seeds=2,
            retain_seeds=1,
            n_recorded=12,
            validation=(2, 2),
            max_settings=1,
            train_rows=4096,
            objects=("Dogs", "Cats"),
            styles=("Van_Gogh", "Monet"),
            batch_size=8,
            n_boot=50,
        )
        measured = bench_unlearn(config, lambda line: None)
        rows = {(row["method"], row["target"]): row for row in measured.rows if "ua" in row}
        assert {("uce", "Dogs"), ("saeuron", "Van_Gogh"), ("no_edit", "Dogs")} <= set(rows)
        # Two objects in two styles and as photographs; both seeds where Van Gogh is asked for, else one.
        assert rows["saeuron", "Van_Gogh"]["n_images"] == 2 * 2 + 4
        recipe = json.loads((tmp_path / "work" / "recipes" / "saeuron-style-Van_Gogh" / "recipe.json").read_text())
        assert recipe["interventions"][0]["site"] == "unet.up_blocks.1.attentions.2:out"
        place = measured.to_dict()["config"]["place"]
        assert place["world"] == "unlearncanvas" and place["calibrated"] and str(tmp_path) not in json.dumps(place)

    def test_the_command_takes_folders(
        self, model: Path, classifiers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["bench", "unlearn", "--world", "unlearncanvas", "--out", str(tmp_path / "o.json"), "--dry-run"]
        assert main(arguments) == FAILED
        assert "needs --model FOLDER" in capsys.readouterr().err
        arguments += ["--model", str(model), "--classifiers", str(classifiers), "--steps", "2"]
        assert main([*arguments, "--targets", "Van_Gogh", "--methods", "uce", "no_edit"]) == 0
        assert "2 stages: " in capsys.readouterr().out
