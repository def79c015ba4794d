"""Several concepts at once: scores against known answers, and the benchmark on a tiny UnlearnCanvas."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from unlearncanvas_world import write_classifiers, write_model

from apps.bench.unlearn.config import ManyBench, UnlearnBench
from apps.bench.unlearn.many import bench_unlearn_many, many_table, n_images
from apps.bench.unlearn.many_conditions import shown_instead
from apps.bench.unlearn.many_figure import many_svg
from apps.errors import InvalidOption
from apps.images import read_image
from apps.unlearning.place import Place
from probe.errors import UnknownConcept
from probe.unlearning import Predictions, score


def scored(targets: list[str], judged: list[str], artifact: list[bool]) -> dict[str, float]:
    """Scores of eight images: four objects, each in two styles; styles are always judged right."""
    objects = [name for name in ("star", "moon", "cup", "key") for _ in range(2)]
    styles = ["flat", "neon"] * 4
    found = score(
        "object",
        targets,
        {"object": objects, "style": styles},
        Predictions({"object": judged, "style": styles}, np.asarray(artifact)),
        cross="style",
        prompts=[f"{o} {s}" for o, s in zip(objects, styles, strict=True)],
        seeds=[0] * 8,
        n_boot=0,
    )
    return {name: interval.value for name, interval in found.values.items()}


def test_scores_of_several_targets() -> None:
    """star and moon are forgotten in 3 of their 4 images, one of them a wreck; one of the 4 others is lost."""
    judged = ["cup", "cup", "moon", "key", "cup", "star", "key", "key"]
    found = scored(["star", "moon"], judged, [True] + [False] * 7)
    assert found["ua"] == 0.75 and found["ua_clean"] == 0.5 and found["artifacts"] == 0.25
    assert found["ira"] == 0.75 and found["cra"] == 1.0 and found["artifacts_retain"] == 0.0


def test_an_unlearned_concept_in_the_stead_of_another_is_told() -> None:
    """Of 6 images that ask for star, moon or cup, 2 show another of these; what the key's images show is not asked."""
    prompted = ["star", "star", "moon", "moon", "cup", "cup", "key", "key"]
    judged = ["moon", "star", "cup", "key", "cup", "key", "star", "key"]
    found = shown_instead(["star", "moon", "cup"], prompted, judged)
    assert found.value == pytest.approx(2 / 6) and 0 == found.low < found.value < found.high
    assert shown_instead(["star"], prompted, judged) == (0.0, 0.0, 0.0)


def test_one_target_in_a_list_is_one_target() -> None:
    judged = ["cup", "star", "moon", "moon", "cup", "cup", "key", "star"]
    assert scored(["star"], judged, [False] * 8)["ua"] == 0.5


def test_something_must_be_left() -> None:
    everything = ["star", "moon", "cup", "key"]
    for wrong in (everything, ["star", "boat"], []):
        with pytest.raises(UnknownConcept, match="absent from others"):
            scored(wrong, ["star"] * 8, [False] * 8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ManyBench:
    folder = tmp_path_factory.mktemp("many")
    (folder / "classifiers").mkdir()
    place = Place(
        "unlearncanvas",
        str(write_model(folder / "style50")),
        write_classifiers(folder / "classifiers"),
        steps=2,
        guidance=2.0,
    )
    bench = UnlearnBench(
        folder / "work",
        ("saeuron",),
        (("object", "Dogs"), ("style", "Monet")),
        place=place,
        n_seeds=2,
        retain_seeds=1,
        n_recorded=12,
        validation=(2, 2),
        max_settings=2,
        train_rows=4096,
        objects=("Dogs", "Cats", "Bears"),
        styles=("Van_Gogh", "Monet"),
        batch_size=8,
        n_boot=20,
    )
    return ManyBench(bench, counts=(1, 2), n_rescored=8)


@pytest.mark.slow
def test_every_condition_is_drawn_once_and_told(config: ManyBench) -> None:
    said: list[str] = []
    measured = bench_unlearn_many(config, said.append)
    rows = {(row["factor"], row["mode"], row["count"]): row for row in measured.rows}
    assert len(rows) == 2 * (3 * 2 + 1)  # the control is drawn for the largest set
    for factor in ("object", "style"):
        one, two = (rows[factor, "joint", n]["target"].split(" + ") for n in (1, 2))
        assert two[:1] == one and len(two) == 2  # the larger set holds the smaller
        assert rows[factor, "sequential", 1]["ua"] == rows[factor, "joint", 1]["ua"]
        assert rows[factor, "joint", 2]["setting"] == rows[factor, "random", 2]["setting"]
        assert rows[factor, "no_edit", 2]["change_retain"] == 0.0 < rows[factor, "random", 2]["change_retain"]
        assert rows[factor, "joint", 1]["instead"] == rows[factor, "no_edit", 1]["instead"] == 0.0
        assert measured.ratios[f"{factor}_joint_2_ua"] == rows[factor, "joint", 2]["ua"]
    assert "2 objects, sequential" in many_table(list(measured.rows))
    drawn = ElementTree.fromstring(many_svg(measured.rows))
    assert len(drawn.findall(".//{*}polyline")) == 2 * 5 * 4  # factors, scores, ways
    assert read_image(config.bench.work / "many-object.png").shape[2] == 3
    work = config.bench.work
    assert not list((work / "many").rglob("store.json"))  # recordings of edited models are scored, then removed
    assert len(list((work / "many").iterdir())) == 2

    again: list[str] = []
    assert bench_unlearn_many(config, again.append).rows == measured.rows
    assert again and all("done before" in line for line in again)


def test_the_number_of_images_is_known_before(config: ManyBench) -> None:
    """12 recorded, 9 unedited; for each factor 4 conditions of 9 and 8 recorded again; objects choose of 2."""
    assert n_images(config) == 12 + 9 + 2 * (4 * 9 + 8) + 2 * (2 + 2)


def test_too_many_concepts_are_refused(config: ManyBench) -> None:
    with pytest.raises(InvalidOption, match="leave no other"):
        bench_unlearn_many(ManyBench(config.bench, counts=(1, 3)))
    with pytest.raises(InvalidOption, match="ascending"):
        ManyBench(config.bench, counts=(2, 1))
