"""Directions among prompts: differences of pairs, and what varies over the words of a factor. No denoiser call.

With e(p) the rows (tokens, d) that a prompt has at a place of the text encoder, or that the denoiser is given for it
(``unet:prompt``), and prompts that differ in one word only,

    TextDifference     v = mean_i  e(p_i+) - e(p_i-)
    TextPCA            principal directions of  e(p_w) - mean_w e(p_w)  over the words w, the rest of the prompt shared

The agreement of the pairs says how far one difference stands for the concept: the mean cosine between differences of
different pairs, 1 where the text encoder adds the same thing to every prompt (compare Mikolov et al. 2013 for words).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch

from probe.directions.direction import Direction, Frame
from probe.directions.fitted import Fitted
from probe.directions.operator_finder import model_record
from probe.directions.points import site_of
from probe.directions.slider_space import principal
from probe.errors import InvalidDirection
from probe.interventions import AddDirection
from probe.interventions.guide import text_embedding
from probe.model.pipeline_eps import PipelineEps
from probe.unlearning.text_rows import text_rows


@dataclass(kw_only=True, eq=False)
class TextFinder(Fitted):
    """Base of the two.

    Attributes:
        site: ``unet:prompt``, or the output of a module of the text encoder, ``text_encoder.encoder.layers.1``.
        view: ``map``, a vector for each token; ``mean``, one vector (d,), the mean over tokens, which is then added
            to all of them.

    After ``fit``: ``direction_``, frame global.
    """

    site: str = "unet:prompt"
    view: Literal["map", "mean"] = "map"

    direction_: Direction = field(init=False, repr=False)

    def _rows(self, model: PipelineEps, prompts: Sequence[str]) -> torch.Tensor:
        """(prompts, tokens or 1, d) float64."""
        if self.view not in ("map", "mean") or not prompts:
            raise InvalidDirection(
                f"{type(self).__name__}: view {self.view!r}, {len(prompts)} prompts; expected map or mean, and prompts."
            )
        if self.site.endswith(":prompt"):
            rows = torch.stack([text_embedding(model.pipe, prompt) for prompt in prompts])
        else:
            rows = text_rows(model.pipe, self.site, prompts, AddDirection(torch.ones(1)))
        rows = rows.double().cpu()
        return rows.mean(1, keepdim=True) if self.view == "mean" else rows

    def _direction(
        self, model: PipelineEps, vectors: torch.Tensor, scale: torch.Tensor, quality: Any, **inputs: Any
    ) -> Direction:
        frame: Frame = "global"
        basis = vectors if self.view == "map" else vectors[:, 0]
        site = str(site_of(model, self.site)) if self.site.endswith(":prompt") else self.site
        about = {"finder": type(self).__name__, "parameters": {"site": site, "view": self.view}, "inputs": inputs}
        about |= {"model": model_record(model), "quality": quality}
        return Direction(site, basis[None].float(), scale[None], frame=frame, provenance=about)


@dataclass(kw_only=True, eq=False)
class TextDifference(TextFinder):
    """Mean difference of prompt pairs. Needs a pipeline with a text encoder; costs the encoding of the prompts.

    After ``fit``: ``direction_`` with one vector whose scale is its length, so that strength 1 exchanges the word;
    ``agreement_``, the mean cosine between differences of different pairs, NaN for a single pair.

    Example:
        >>> from probe.directions import TextDifference
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> pairs = [(f"a red {thing}", f"a blue {thing}") for thing in ("star", "cup", "cat")]
        >>> found = TextDifference().fit(model, pairs)
        >>> edit = found.direction_.intervention(strength=1.0, branch="cond")
        >>> images = generate(model.pipe, ["a blue fish"], [0], steps=5, interventions=[edit])
    """

    agreement_: float = field(init=False, repr=False)

    def fit(self, model: PipelineEps, pairs: Sequence[tuple[str, str]]) -> Self:
        """Encode the pairs (with, without).

        Raises:
            InvalidDirection: there are no pairs, or they do not differ.
        """
        positive, negative = ([pair[i] for pair in pairs] for i in range(2))
        each = (self._rows(model, positive) - self._rows(model, negative)).flatten(1)
        if not bool((each.norm(dim=1) > 0).all()):
            raise InvalidDirection("TextDifference: the two prompts of a pair are the same to the text encoder.")
        unit = torch.nn.functional.normalize(each, dim=1)
        n = len(each)
        self.agreement_ = float(((unit @ unit.T).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")
        shape = self._rows(model, positive[:1]).shape[1:]
        vector = each.mean(0).reshape(1, *shape)
        quality = {"agreement": self.agreement_ if n > 1 else None}
        length = vector.norm().reshape(1)
        self.direction_ = self._direction(model, vector, length, quality, pairs=[list(p) for p in pairs])
        return self


@dataclass(kw_only=True, eq=False)
class TextPCA(TextFinder):
    """Principal directions over the words of a factor. Needs a pipeline with a text encoder.

    Attributes:
        k: directions.

    After ``fit``: ``direction_`` with k unit vectors whose scale is the standard deviation over the words along them;
    ``explained_variance_ratio_`` (k,).

    Example:
        >>> from probe.directions import TextPCA
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> prompts = [f"a {colour} star" for colour in ("red", "green", "blue", "pink", "cyan")]
        >>> found = TextPCA(k=2).fit(model, prompts)
        >>> edit = found.direction_.intervention(0, strength=2.0, branch="cond")
        >>> images = generate(model.pipe, ["a red star"], [0], steps=5, interventions=[edit])
    """

    k: int = 3

    explained_variance_ratio_: np.ndarray = field(init=False, repr=False)

    def fit(self, model: PipelineEps, prompts: Sequence[str]) -> Self:
        """Encode and decompose prompts, one for each word.

        Raises:
            InvalidDirection: fewer than k + 1 different prompts.
        """
        rows = self._rows(model, prompts)
        axes, self.explained_variance_ratio_ = principal(rows.flatten(1), self.k)
        scale = ((rows.flatten(1) - rows.flatten(1).mean(0)) @ axes.T).std(0)
        vectors = axes.reshape(self.k, *rows.shape[1:])
        quality = {"explained_variance_ratio": self.explained_variance_ratio_.tolist()}
        self.direction_ = self._direction(model, vectors, scale, quality, prompts=list(prompts))
        return self
