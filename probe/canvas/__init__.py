"""Canvas: a world whose truth is planted, and a text-to-image model that learned it.

``world`` names the factors and their captions, ``render`` draws, ``judge`` reads an image back, and ``MODEL_DIR`` is a
small Stable Diffusion pipeline trained on the renders (``train`` is how). Read ``README.md`` beside this file first.
"""

from probe.canvas.captions import paraphrase, partial_caption
from probe.canvas.judge import Judge, Verdict, shipped_judge
from probe.canvas.model import MODEL_DIR
from probe.canvas.render import Batch, Render, carry_points, render, render_batch
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

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FACTORS",
    "HELD_OUT_OBJECT_COLOUR",
    "HELD_OUT_OBJECT_STYLE",
    "MODEL_DIR",
    "OBJECTS",
    "STYLES",
    "Batch",
    "Judge",
    "Render",
    "Scene",
    "SceneError",
    "Verdict",
    "caption",
    "carry_points",
    "is_held_out",
    "paraphrase",
    "parse_caption",
    "partial_caption",
    "render",
    "render_batch",
    "sample_scene",
    "shipped_judge",
]
