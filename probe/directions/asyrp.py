"""A change of the bottleneck, one for each step, trained for an objective and injected into the predicted sample only.

Kwon et al. 2023 (Asyrp, https://arxiv.org/abs/2210.10960). A DDIM step writes P_t, the predicted clean sample, and D_t,
the direction back to x_t. An edit of both nearly cancels, so the edited noise eps~ = eps(z; h + d_t) enters P alone:

    z_{t-1} = alpha_{t-1} P_t(eps~) + sigma_{t-1} eps                   P_t(eps) = (z_t - sigma_t eps) / alpha_t

The changes d_t are trained along this very process, from pure noise: at every step

    L_t = objective(P_t(eps~), P_t(eps)) + weight |P_t(eps~) - P_t(eps)|_1

and the state goes on to the next step as a constant. The paper trains a small network d_t = f(h_t, t), and CLIP is its
objective; here d_t is one vector a step, which needs no network where it is used, and the objective is an argument (see
``objectives.py``). The first step of a schedule that starts from pure noise has no posterior mean and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch

from probe.capture.tensors import to_rows
from probe.directions.direction import Direction
from probe.directions.objectives import Objective
from probe.directions.optimised import OptimisedFinder, Progress, site_example, vector_shape
from probe.directions.points import added, site_of
from probe.errors import InvalidDirection
from probe.interventions import Intervention
from probe.model.eps_model import alpha_sigma, conditions
from probe.model.pipeline_eps import PipelineEps
from probe.model.schedule import noise_levels


@dataclass(kw_only=True, eq=False)
class Asyrp(OptimisedFinder):
    """Trained changes of a site, for each step. Needs a pipeline and an objective.

    Attributes:
        site: where the changes are added.
        objective: what they are for.
        weight: of the reconstruction.
        view: ``tokens``, one vector (d,) for all tokens; ``map``, a vector for each token.
        per_step: a vector a step; False for one vector at all steps.
        levels: log-SNRs of the steps, from noise; None for the model's own sampling schedule.

    After ``fit``: as ``OptimisedFinder``; ``direction_`` holds one vector a step, frame per_step, whose scale is its
    length. Use ``edit``, which injects it as it was trained.

    Example:
        >>> from probe.directions import Asyrp, PromptContrast
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> prompts = ["a blue cup on white background in flat style"]
        >>> objective = PromptContrast(model, "a red cup in flat style", "a blue cup in flat style")
        >>> found = Asyrp(objective=objective, levels=(-4.0, 0.0, 4.0), iterations=1, batch=1).fit(model, prompts)
        >>> images = generate(model.pipe, prompts, [0], interventions=[found.edit(strength=1.0)])
    """

    objective: Objective
    site: str = "mid_block"
    weight: float = 0.0
    view: Literal["tokens", "map"] = "tokens"
    per_step: bool = True
    iterations: int = 30
    batch: int = 4

    def fit(self, model: PipelineEps, prompts: str | Sequence[str], progress: Progress | None = None) -> Self:
        """Train the changes; an iteration is two passes forward and one back to the site for each step and sample.

        Args:
            model: the pipeline.
            prompts: what the samples show before the edit; ``batch`` of them are drawn for an iteration.
            progress: called with (done, total).

        Raises:
            UnknownSite, InvalidDirection: no such site, or impossible settings.
        """
        levels = self._levels(model)
        given = conditions(prompts, 1) if isinstance(prompts, str) else list(prompts)
        if not given or not self.weight >= 0:
            raise InvalidDirection(
                f"Asyrp: {len(given)} prompts, weight {self.weight}; expected at least one prompt and a weight of at "
                "least 0."
            )
        site, generator = site_of(model, self.site), self._generator()
        example = site_example(model, self.site)
        shape = vector_shape(example, self.view)
        d = torch.zeros(len(levels) if self.per_step else 1, *shape[1:], device=model.device).requires_grad_()

        def loss() -> torch.Tensor:
            index = torch.randint(len(given), (self.batch,), generator=generator)
            cond = [given[int(i)] for i in index]
            z = torch.randn(self.batch, *model.sample_shape, generator=generator).to(model.device)
            total = torch.zeros((), device=model.device)
            for i, a in enumerate(levels):
                alpha, sigma = alpha_sigma(a, z)
                with torch.no_grad():
                    eps = model.eps(z, a, cond)
                row = d[i if self.per_step else 0]
                with added(model, site, row.expand(self.batch, *row.shape)):
                    moved = model.eps(z, a, cond)
                edited, plain = (z - sigma * moved) / alpha, (z - sigma * eps) / alpha
                each = self.objective(edited, plain, z, a).mean() + self.weight * (edited - plain).abs().mean()
                (each / len(levels)).backward()  # step by step: no graph is held longer than its step
                total = total + each.detach() / len(levels)
                if i + 1 < len(levels):
                    alpha, sigma = alpha_sigma(levels[i + 1], z)
                    z = alpha * edited.detach() + sigma * eps
            return total.requires_grad_()  # its gradients are there already

        times = tuple(round(level.t) for level in noise_levels(model.pipe.scheduler, levels))
        self._descend([d], loss, progress, rate=float(example.square().mean().sqrt()))
        rows = torch.stack([to_rows(str(site), row[None])[0] for row in d.detach()])
        basis = rows[:, None] if self.view == "map" else rows[:, None, 0]
        self.direction_ = Direction(
            str(site),
            basis,
            basis.flatten(2).norm(dim=-1),
            timesteps=times if self.per_step else None,
            frame="per_step" if self.per_step else "global",
            provenance=self._about(model, prompts=given),
        )
        return self

    def edit(self, strength: float = 1.0, *, steps: Sequence[int] | None = None, branch: str = "both") -> Intervention:
        """The edit as it was trained: into the predicted sample only. Needs a DDIM sampler."""
        return self.direction_.intervention(0, strength, unit="raw", branch=branch, steps=steps, inject="x0")
