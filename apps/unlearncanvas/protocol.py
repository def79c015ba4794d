"""UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846): its styles, objects, prompts and settings.

A Stable Diffusion model that was fine-tuned on the data set is prompted for 20 objects in 50 styles and in none (the
photographs that were stylised, "Seed Images"), with five seeds, 100 DDIM steps at guidance 9 and 512 pixels. Each style
and each object is a target once. Two classifiers of 51 and 20 labels read the images.

The names below are in the order of the classifiers' outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

PHOTOGRAPH = "Seed_Images"
"""The style of unstylised photographs: in the grid and known to the classifier, but never a target."""

STYLES = (
    "Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm",
    "Color_Fantasy", "Comic_Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn",
    "Expressionism", "Fauvism", "French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield", "Impressionism", "Ink_Art",
    "Joy", "Liquid_Dreams", "Magic_Cube", "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic", "Neon_Lines", "On_Fire",
    "Pastel", "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust", "Seed_Images", "Sketch",
    "Sponge_Dabbed", "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow", "Warm_Love",
    "Warm_Smear", "Watercolor", "Winter",
)  # fmt: skip
OBJECTS = (
    "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses",
    "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls",
)  # fmt: skip
LABELS: dict[str, tuple[str, ...]] = {"object": OBJECTS, "style": STYLES}

SEEDS = (188, 288, 588, 688, 888)
STEPS, GUIDANCE, SIDE = 100, 9.0, 512


def caption(labels: Mapping[str, str]) -> str:
    """The prompt of an object in a style, worded as in the benchmark's own scripts.

    Example:
        ``"A Dogs image in Van Gogh style."``
    """
    return f"A {labels['object']} image in {spoken(labels['style'])} style."


PARAPHRASES = (
    "An image of {object} in {style} style.",  # SAeUron's wording
    "{style} style, {object}.",
    "{object}, painted in the style of {style}.",
)
"""Other ways to say it, for prompts that settings are chosen on."""


def paraphrase(labels: Mapping[str, str], form: int) -> str:
    """One of the other wordings; ``form`` counts in ``PARAPHRASES``."""
    return PARAPHRASES[form].format(object=labels["object"], style=spoken(labels["style"]))


def spoken(label: str) -> str:
    """A label as prompts say it: without underscores."""
    return label.replace("_", " ")
