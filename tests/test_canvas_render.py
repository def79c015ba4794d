"""canvas: captions and hold-outs are exact, images are reproducible to the byte, masks lie on the objects."""

import hashlib
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from probe.canvas.render import carry_points, render, render_batch
from probe.canvas.world import (
    BACKGROUNDS,
    COLOURS,
    FACTORS,
    HELD_OUT_OBJECT_COLOUR,
    HELD_OUT_OBJECT_STYLE,
    OBJECTS,
    STYLES,
    Scene,
    SceneError,
    caption,
    is_held_out,
    parse_caption,
    sample_scene,
)

_ROOT = Path(__file__).resolve().parents[1]


def test_caption_has_the_documented_form():
    scene = Scene("star", "mosaic", "red", "dark", x=3.0)
    assert caption(scene) == "a red star on dark background in mosaic style"


def test_captions_round_trip_for_every_combination():
    texts = set()
    for values in product(*FACTORS.values()):
        names: dict[str, Any] = dict(zip(FACTORS, values, strict=True))
        texts.add(caption(names))
        assert parse_caption(caption(names)) == names
        assert caption(Scene(**names)) == caption(names)
    assert len(texts) == 12 * 10 * 8 * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a star", "cannot read 'a star'"),
        ("a red star on dark background in mosaic style ", "cannot read"),
        (
            "a mauve star on dark background in mosaic style",
            "unknown colour 'mauve'; expected one of red, orange",
        ),
        ("a red dog on dark background in mosaic style", "unknown object 'dog'"),
        ("a red star on lilac background in mosaic style", "unknown background 'lilac'"),
        ("a red star on dark background in cubist style", "unknown style 'cubist'"),
    ],
)
def test_bad_captions_are_refused_by_name(text: str, message: str):
    with pytest.raises(SceneError, match=message):
        parse_caption(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": "dog"}, "Scene: unknown object 'dog'; expected one of star, heart"),
        ({"style": "cubist"}, "unknown style 'cubist'"),
        ({"colour": "mauve"}, "unknown colour 'mauve'"),
        ({"background": "lilac"}, "unknown background 'lilac'"),
        ({"x": 40.0}, r"x must lie in \[-32, 32\], got 40.0"),
        ({"size": float("nan")}, "size must lie in"),
        ({"angle": float("inf")}, "angle must lie in"),
    ],
)
def test_bad_scenes_are_refused_by_name(change: dict[str, Any], message: str):
    names: dict[str, Any] = {"object": "star", "style": "flat", "colour": "red", "background": "white"}
    with pytest.raises(SceneError, match=message):
        Scene(**(names | change))


def test_errors_are_value_errors_and_name_missing_or_unknown_factors():
    assert issubclass(SceneError, ValueError)
    rng = np.random.default_rng(0)
    with pytest.raises(SceneError, match="'style' is missing"):
        caption({"object": "star"})
    with pytest.raises(SceneError, match="unknown factor 'color'; expected one of object, style, colour"):
        sample_scene(rng, color="red")
    with pytest.raises(SceneError, match="unknown split 'test'"):
        sample_scene(rng, split="test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SceneError, match="split 'train' has no combination"):
        sample_scene(rng, split="train", object="tree", style="flat")
    with pytest.raises(SceneError, match="unknown object 'dog'"):
        is_held_out("dog", "flat", "red")
    with pytest.raises(SceneError, match="unknown split 'test'"):
        render_batch([0], split="test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SceneError, match="non-negative"):
        render_batch([3, -1])
    with pytest.raises(SceneError, match="non-negative"):
        render(Scene("star", "flat", "red", "white"), -1)


def test_held_out_pairs_cover_each_style_and_colour_once():
    assert sorted(style for _, style in HELD_OUT_OBJECT_STYLE) == sorted(STYLES)
    assert sorted(colour for _, colour in HELD_OUT_OBJECT_COLOUR) == sorted(COLOURS)
    assert len({o for o, _ in HELD_OUT_OBJECT_STYLE}) == 10
    assert len({o for o, _ in HELD_OUT_OBJECT_COLOUR}) == 8
    # The pairs are part of the data set's definition: a reordering of a factor must not move them.
    assert {("tree", "flat"), ("star", "dots"), ("cup", "pixel")} < HELD_OUT_OBJECT_STYLE
    assert {("heart", "red"), ("umbrella", "cyan"), ("star", "pink")} < HELD_OUT_OBJECT_COLOUR


def test_splits_partition_the_combinations():
    rng = np.random.default_rng(3)
    for _ in range(2000):
        seen = sample_scene(rng, split="train")
        unseen = sample_scene(rng, split="held_out")
        assert not is_held_out(seen.object, seen.style, seen.colour)
        assert is_held_out(unseen.object, unseen.style, unseen.colour)


def test_every_name_stays_in_the_training_split():
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng, split="train") for _ in range(2000)]
    for factor, names in FACTORS.items():
        assert {getattr(scene, factor) for scene in scenes} == set(names)


def test_fixed_factors_are_kept():
    rng = np.random.default_rng(5)
    for _ in range(50):
        scene = sample_scene(rng, split="train", style="neon", background="sand")
        assert (scene.style, scene.background) == ("neon", "sand")


@pytest.mark.parametrize("style", STYLES)
def test_same_scene_and_seed_give_the_same_bytes(style: str):
    scene = Scene("cat", style, "blue", "sand", x=2.3, y=-1.0, size=0.9, angle=7.0)
    one, two, other = render(scene, 11), render(scene, 11), render(scene, 12)
    assert one.image.tobytes() == two.image.tobytes()
    assert one.mask.tobytes() == two.mask.tobytes()
    assert one.image.tobytes() != other.image.tobytes()


def test_images_do_not_depend_on_the_batch_they_come_in():
    whole = render_batch(range(24), seed=2)
    shuffled = np.random.default_rng(0).permutation(24)[:9]
    part = render_batch(shuffled, seed=2)
    np.testing.assert_array_equal(part.images, whole.images[shuffled])
    np.testing.assert_array_equal(part.masks, whole.masks[shuffled])
    np.testing.assert_array_equal(part.labels, whole.labels[shuffled])
    assert part.captions == [whole.captions[i] for i in shuffled]
    assert part.scenes == [whole.scenes[i] for i in shuffled]


def test_seeds_and_splits_are_different_data():
    first = render_batch(range(4)).images
    assert not np.array_equal(first, render_batch(range(4), seed=1).images)
    assert not np.array_equal(first, render_batch(range(4), split="all").images)


def test_another_process_gives_the_same_bytes():
    code = (
        "import hashlib; from probe.canvas.render import render_batch; b = render_batch(range(40), seed=9);"
        "print(hashlib.sha256(b.images.tobytes() + b.masks.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True, timeout=120)
    here = render_batch(range(40), seed=9)
    assert done.stdout.strip() == hashlib.sha256(here.images.tobytes() + here.masks.tobytes()).hexdigest()


def test_batch_shapes_labels_and_captions_agree():
    batch = render_batch(range(30), split="held_out")
    assert batch.images.shape == (30, 64, 64, 3) and batch.images.dtype == np.uint8
    assert batch.masks.shape == (30, 64, 64) and batch.masks.dtype == np.uint8
    assert batch.labels.shape == (30, 4) and batch.labels.dtype == np.int64
    for label, text, scene in zip(batch.labels, batch.captions, batch.scenes, strict=True):
        names = {factor: FACTORS[factor][i] for factor, i in zip(FACTORS, label, strict=True)}
        assert parse_caption(text) == names
        assert all(getattr(scene, factor) == name for factor, name in names.items())
        assert is_held_out(scene.object, scene.style, scene.colour)


def test_empty_batch_is_allowed():
    assert render_batch([]).images.shape == (0, 64, 64, 3)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("style", STYLES)
def test_mask_lies_where_the_object_changes_the_image(name: str, style: str):
    # The same scene with the object in two colours differs only where the object paints.
    red, green = (render(Scene(name, style, colour, "gray"), 0) for colour in ("red", "green"))
    np.testing.assert_array_equal(red.mask, green.mask)
    assert red.mask.dtype == np.float32 and red.mask.min() >= 0.0 and red.mask.max() <= 1.0
    assert 0.10 < red.mask.mean() < 0.5
    difference = np.abs(red.image.astype(int) - green.image.astype(int)).sum(axis=-1)
    changed, inside = difference > 24, red.mask > 0.5
    # Hatching and neon leave gaps inside the silhouette; a neon tube lights a margin around it.
    assert (changed & inside).sum() > 0.45 * inside.sum()
    assert not (changed & ~np.asarray(binary_dilation(inside, iterations=9), dtype=bool)).any()


@pytest.mark.parametrize("style", STYLES)
def test_background_is_told_apart_outside_the_object(style: str):
    brightness = {}
    for background in BACKGROUNDS:
        drawn = render(Scene("heart", style, "blue", background), 1)
        brightness[background] = np.median(drawn.image[drawn.mask == 0.0], axis=0)
    for one, two in product(BACKGROUNDS, BACKGROUNDS):
        if one < two:
            assert np.abs(brightness[one] - brightness[two]).sum() > 40, (one, two)


def test_position_moves_the_mask():
    def centre(x: float, y: float) -> np.ndarray:
        mask = render(Scene("heart", "flat", "red", "white", x=x, y=y), 0).mask
        rows, cols = np.indices(mask.shape)
        return np.array([(cols * mask).sum(), (rows * mask).sum()]) / mask.sum()

    np.testing.assert_allclose(centre(5.0, -4.0) - centre(0.0, 0.0), [5.0, -4.0], atol=0.05)


def test_points_are_carried_with_the_object():
    """The cells of a drawn mask, carried to another place, size, angle and style, lie on the mask drawn there."""
    source = Scene("key", "flat", "red", "white", x=-4, y=3, size=0.9, angle=-8)
    target = Scene("key", "mosaic", "blue", "dark", x=5, y=-2, size=1.08, angle=9)
    masks = [render(scene, 0).mask for scene in (source, target)]
    rows, columns = np.nonzero(masks[0] > 0.99)
    points = np.stack([columns, rows], 1).astype(np.float64) + 0.5
    moved = carry_points(points, source, target)
    there = masks[1][moved[:, 1].astype(int), moved[:, 0].astype(int)]
    assert (there > 0.5).mean() > 0.98
    np.testing.assert_allclose(carry_points(moved, target, source), points, atol=1e-9)
    centre = np.array([[32 + source.x, 32 + source.y]], dtype=np.float64)
    np.testing.assert_allclose(carry_points(centre, source, target), [[32 + target.x, 32 + target.y]])
    with pytest.raises(SceneError, match="no points of a cup"):
        carry_points(points, source, Scene("cup", "flat", "red", "white"))
