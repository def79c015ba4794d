"""What a fit costs: rows through the denoiser, rows back through it, and time; counted, or foretold.

A finder that iterates does the same in every iteration, so that fits of one and of two iterations foretell all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probe.model.pipeline import Pipeline


@dataclass
class Cost:
    """What was done.

    Attributes:
        evaluations: rows that passed through the denoiser.
        gradients: rows that passed back through it; for finders on a Jacobian, products with it.
        cpu_s: processor seconds of all threads.
        wall_s: seconds.
    """

    evaluations: float = 0
    gradients: float = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return self._with(other, lambda a, b: a + b)

    def extrapolated(self, twice: Cost, iterations: int) -> Cost:
        """The cost of some iterations, from those of one (this) and two; what is not linear is taken as constant."""
        return self._with(twice, lambda a, b: a + (iterations - 1) * max(b - a, 0))

    def _with(self, other: Cost, make: Callable[[float, float], float]) -> Cost:
        return Cost(**{name: make(value, getattr(other, name)) for name, value in vars(self).items()})

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.wall_s), 60)
        return f"{self.evaluations:.0f} rows through the denoiser, {self.gradients:.0f} back, {minutes}:{seconds:02d}"


@contextmanager
def counted(pipe: Pipeline) -> Iterator[Cost]:
    """A cost that grows while the block is open."""
    from probe.capture.tensors import find_output
    from probe.model.steps import denoiser

    cost = Cost()
    name, module = denoiser(pipe)

    def back(gradient: Any) -> None:
        cost.gradients += len(gradient)

    def forth(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found = find_output(name, output, args, kwargs).tensor
        cost.evaluations += len(found)
        if found.requires_grad:
            found.register_hook(back)

    handle = module.register_forward_hook(forth, with_kwargs=True)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        handle.remove()
        cost.wall_s += time.perf_counter() - wall
        cost.cpu_s += time.process_time() - cpu


def fitted(pipe: Pipeline, fit: Callable[[], Any]) -> tuple[Any, Cost]:
    """A fit, and what it cost.

    Args:
        pipe: the model.
        fit: returns a fitted finder.
    """
    with counted(pipe) as cost:
        finder = fit()
    if (products := vars(finder).get("products_")) is not None:
        cost.gradients = products
    return finder, cost
