"""probe.directions: the example in the docstring of every finder runs on the embedded model, as it is printed."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import numpy as np
import pytest
import torch

import probe.directions as directions
from activations_store import ActivationStore
from probe import model as models
from probe.canvas import caption, sample_scene
from probe.capture import CapturePlan, collect
from probe.interventions import TopKDictionary
from probe.model.analytic import Sphere

CHOICES = {"object": ("star", "cup"), "style": ("mosaic", "flat"), "colour": ("red", "blue"),
           "background": ("dark", "white")}  # fmt: skip
ABSTRACT = {"StoreFinder", "ContrastFinder"}


def finders() -> dict[str, list[doctest.Example]]:
    """The examples of everything that can be fitted."""
    found = {}
    for name in directions.__all__:
        item: Any = getattr(directions, name)
        if hasattr(item, "fit") and name not in ABSTRACT:
            found[name] = doctest.DocTestParser().get_examples(inspect.getdoc(item) or "")
    return found


EXAMPLES = finders()


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, Any]:
    """What the examples take for granted: a labelled store of canvas, a dictionary, and what they import."""
    pipe = models.load_pipeline("canvas")
    rng = np.random.default_rng(0)
    scenes = []
    for i in range(16):  # every pair of values equally often
        bits = (i & 1, i >> 1 & 1, i >> 2 & 1, i >> 3 & 1)
        scenes.append(
            sample_scene(rng, split="all", **{f: v[b] for (f, v), b in zip(CHOICES.items(), bits, strict=True)})
        )
    plan = CapturePlan.for_pipeline(
        pipe,
        ["mid_block", "unet:in"],
        [caption(scene) for scene in scenes],
        labels={factor: [getattr(scene, factor) for scene in scenes] for factor in CHOICES},
        steps=4,
        branches=("cond",),
        dtype="float32",
        images=False,
    )
    store: ActivationStore = collect(pipe, plan, tmp_path_factory.mktemp("examples") / "store")
    w = torch.nn.functional.normalize(torch.randn(60, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    dictionary = TopKDictionary(w.T.clone(), torch.zeros(60), w, torch.zeros(128), k=2)
    known = {name: getattr(directions, name) for name in directions.__all__}
    known |= {name: getattr(models, name) for name in ("PipelineEps", "generate")}
    known |= {"torch": torch, "Sphere": Sphere, "load_pipeline": lambda _: pipe, "store": store, "sae": dictionary}
    return known | {"site": "unet.mid_block:out"}


class AnyOutput(doctest.OutputChecker):
    """The examples show calls, not what they print."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        """Anything will do."""
        return True


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_every_finder_runs(names, name):
    examples = EXAMPLES[name]
    assert 1 <= len(examples) <= 10
    test = doctest.DocTest(examples, dict(names), name, None, None, None)
    said: list[str] = []
    result = doctest.DocTestRunner(AnyOutput(), verbose=False).run(test, out=said.append)
    assert result.attempted == len(examples) and not result.failed, "".join(said)
