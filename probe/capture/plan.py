"""A collection that generates its samples: prompts, seeds, denoising steps, and which of the steps are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probe.capture.recording import Recording, is_count
from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidPlan
from probe.model.conditioning import computed_branches
from probe.model.fingerprint import model_name
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class CapturePlan(Recording):
    """A collection of generations. The fields that every plan has are those of ``Recording``.

    Attributes:
        steps: denoising steps. A sampler that calls the denoiser more often than once a step (PNDM, Heun, KDPM2) has
            each of its calls recorded as a step of the store.
        guidance: guidance scale.
        record_steps: the steps to keep, ascending, 0 = most noise; None keeps all. The steps of the store then count
            the kept ones, and its timesteps and log-SNRs are theirs. Without images a generation ends as soon as
            the last of them is recorded.
    """

    steps: int = 20
    guidance: float = 2.0
    record_steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "guidance", float(self.guidance))
        self._check_counts("steps")
        if not 0.0 <= self.guidance < float("inf"):
            raise InvalidPlan(f"plan: guidance must be a finite number of at least 0, got {self.guidance!r}.")
        if self.record_steps is not None:
            given = tuple(self.record_steps)
            good = bool(given) and all(is_count(step, least=0) and step < self.steps for step in given)
            if not good or len(set(given)) != len(given):
                raise InvalidPlan(
                    f"plan: record_steps {given!r}; expected different steps from 0 to {self.steps - 1}, at least one."
                )
            object.__setattr__(self, "record_steps", tuple(sorted(given)))

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps that are recorded, ascending."""
        return tuple(range(self.steps)) if self.record_steps is None else self.record_steps

    def kept_of(self, n_calls: int) -> tuple[int, ...]:
        """``kept_steps`` under a sampler that calls the denoiser so many times for ``steps`` steps."""
        return tuple(range(n_calls)) if self.record_steps is None else self.record_steps

    @classmethod
    def for_pipeline(
        cls,
        pipe: Pipeline,
        sites: str | Site | Iterable[str | Site],
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        first_seed: int = 0,
        labels: Mapping[str, Sequence[str]] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        branches: Sequence[str] | None = None,
        **options: Any,
    ) -> CapturePlan:
        """A plan with names completed and the model's own defaults filled in.

        Args:
            pipe: the pipeline that will be run.
            sites: site names as people type them (see ``resolve_sites``).
            prompts: one for each sample.
            seeds: one for each prompt; ``first_seed``, ``first_seed + 1``, ... if None.
            first_seed: see ``seeds``.
            labels: for each factor, one value a prompt.
            steps, guidance: the model's defaults if None.
            branches: those that the pipeline computes at this guidance scale, if None.
            **options: ``record_steps`` and the fields of ``Recording``, such as ``dtype`` or ``tokens``.
        """
        if isinstance(prompts, str):
            raise InvalidPlan(f"plan: prompts must be a list of strings, got the string {prompts!r}.")
        default = generation_defaults(pipe)
        scale = default.guidance if guidance is None else float(guidance)
        given = tuple(prompts)
        if branches is None:
            branches = computed_branches(pipe, given[0], scale) if given and scale > 1.0 else ("cond",)
        return cls(
            model=model_name(pipe),
            sites=tuple(str(site) for site in resolve_sites(pipe, sites)),
            prompts=given,
            seeds=tuple(range(first_seed, first_seed + len(prompts)) if seeds is None else seeds),
            labels={name: tuple(values) for name, values in (labels or {}).items()},
            steps=default.steps if steps is None else steps,
            guidance=scale,
            branches=tuple(branches),
            **options,
        )
