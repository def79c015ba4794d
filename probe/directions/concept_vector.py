"""A vector that stands for a given concept, learned by explaining images of it.

Li et al. 2024 (https://arxiv.org/abs/2311.17216, "self-discovering"). Samples x show a concept (the model drew them for
"a red star"); the model is then asked to denoise them under a prompt y- that does not name it ("a red thing"), and a
vector c at a site h is all that may make up for what the prompt leaves out:

    c = argmin  E_{x, n, a} | n - eps(z, a, y-; h + c) |^2                 z = alpha x + sigma n

The same c serves every level and, as in the paper, every token. With the bottleneck as the site this is the paper's
method; with ``unet:prompt`` it is a direction in the text embedding, a learned word in the place of the missing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from probe.capture.tensors import to_rows
from probe.directions.direction import Direction
from probe.directions.optimised import OptimisedFinder, Progress, drawn, site_example, vector_shape
from probe.directions.points import added, site_of
from probe.model.eps_model import conditions
from probe.model.pipeline_eps import PipelineEps


@dataclass(kw_only=True, eq=False)
class ConceptVector(OptimisedFinder):
    """Learned vector of a concept. Needs a pipeline, and samples that show the concept.

    Attributes:
        site: where the vector is added: a module of the denoiser, or ``unet:prompt``.
        view: ``tokens``, one vector (d,) for all tokens, as in the paper; ``map``, a vector for each token.

    After ``fit``: as ``OptimisedFinder``. One vector, frame global, whose scale is its length: strength 1 is the vector
    as it was learned.

    Example:
        >>> from probe.directions import ConceptVector, self_generated
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> x = self_generated(model, ["a red star on dark background in flat style"] * 3, range(3))
        >>> finder = ConceptVector(site="up_blocks.1", iterations=3, batch=2)
        >>> found = finder.fit(model, x, "a red star in flat style")
        >>> edit = found.direction_.intervention(strength=1.0, branch="cond")
        >>> images = generate(model.pipe, ["a blue cup in flat style"], [0], steps=5, interventions=[edit])
    """

    site: str = "mid_block"
    view: Literal["tokens", "map"] = "tokens"

    def fit(
        self, model: PipelineEps, x: torch.Tensor, source: str | Sequence[str], progress: Progress | None = None
    ) -> Self:
        """Train the vector; an iteration is one pass forward and one back to the site for ``batch`` samples.

        Args:
            model: the pipeline.
            x: (N, *sample_shape) samples that show the concept.
            source: the prompt without it, or one a sample.
            progress: called with (done, total).

        Raises:
            UnknownSite, InvalidDirection, InvalidRequest: no such site, or inputs that do not fit together.
        """
        levels, x = self._levels(model), self._samples(model, x)
        sources = conditions(source, len(x))
        site, generator = site_of(model, self.site), self._generator()
        example = site_example(model, self.site)
        c = torch.zeros(vector_shape(example, self.view), device=model.device).requires_grad_()

        def loss() -> torch.Tensor:
            index, z, noise, a = drawn(x, levels, self.batch, generator)
            with added(model, site, c.expand(self.batch, *c.shape[1:])):
                eps = model.eps(z, a, [sources[int(i)] for i in index])
            return (noise - eps).square().mean()

        self._descend([c], loss, progress, rate=float(example.square().mean().sqrt()))
        rows = to_rows(str(site), c.detach())[0]
        vector = rows if self.view == "map" else rows[0]
        self.direction_ = Direction(
            str(site),
            vector[None, None],
            vector.norm().reshape(1, 1),
            provenance=self._about(model, x=x, source=sources),
        )
        return self
