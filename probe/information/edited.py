"""A denoiser with one site changed: information that a direction or a feature carries, by taking it away.

The intact and the edited denoiser meet the same noisy samples, as two columns of one table. With eps' the edited one,

    standard      1/2 INT da E[ ||n - eps'||^2 - ||n - eps||^2 ]      nats of likelihood that the edit costs, by pixel
    orthogonal    1/2 INT da E ||eps' - eps||^2                       how far it moves the denoiser, in the same unit

An edited denoiser is no posterior mean: the first is negative where the edit helps, and the two need not agree. Two
edits decompose like two words, ``pid(..., columns=(both away, second away, first away, intact))``, first and second
being what is still there.

Site edits of ``probe.interventions`` follow a sampler's steps; nodes lie between them, so that the hook here is open
for one denoiser call and applies at every level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probe.capture.sites import resolve_sites
from probe.capture.tensors import find_input, find_output, from_rows, replace_input, replace_output, to_rows
from probe.errors import InvalidRequest
from probe.model.eps_model import Cond, LogSnr
from probe.model.fingerprint import fingerprint
from probe.model.pipeline_eps import PipelineEps

Change = Callable[[torch.Tensor], torch.Tensor]
"""Rows (B, tokens, d) to rows of the same shape."""


class Edited:
    """A pipeline's denoiser with one site changed in every call; the pipeline itself is as it was after each call.

    Args:
        model: the pipeline.
        site: one site, port ``in`` or ``out``.
        change: what is done to its rows.
        name: what the change is, for the record of a table: another name is another denoiser.

    Raises:
        UnknownSite: no such site.
        InvalidRequest: a name for several sites, or another port.

    Example:
        >>> import torch
        >>> from probe.information import Column, Edited, Nodes, information, measure, without_direction
        >>> from probe.model import PipelineEps, load_pipeline
        >>> model, captions = PipelineEps(load_pipeline("canvas")), ["a red star in flat style", "a blue cup"]
        >>> x = torch.randn(2, *model.sample_shape)  # clean latents of two images
        >>> away = Edited(model, "mid_block", without_direction(torch.randn(128)), "a direction away")
        >>> columns = [Column("intact", captions), Column("away", captions, model=away)]
        >>> table = measure(model, x, columns, Nodes(4, model.log_snr_range))
        >>> information(table, "intact", given="away").maps.shape
        (2, 16, 16)
    """

    def __init__(self, model: PipelineEps, site: str, change: Change, name: str) -> None:
        found = resolve_sites(model.pipe, site)
        if len(found) != 1 or found[0].port not in ("in", "out"):
            raise InvalidRequest(
                f"Edited: {site!r} means {', '.join(map(str, found))}; expected one site with port 'in' or 'out'."
            )
        self._model, self._site, self._change, self.name = model, found[0], change, name
        self.sample_shape, self.log_snr_range = model.sample_shape, model.log_snr_range
        self.dtype, self.device = model.dtype, model.device

    def eps(self, z: torch.Tensor, log_snr: LogSnr, cond: Cond = None) -> torch.Tensor:
        """See ``EpsModel.eps``."""
        module = self._site.module(self._model.pipe)
        if self._site.port == "in":
            handle = module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(self._after, with_kwargs=True)
        try:
            return self._model.eps(z, log_snr, cond)
        finally:
            handle.remove()

    def record(self) -> dict[str, Any]:
        """JSON values that name the edit and its model."""
        of = fingerprint(self._model.pipe)
        return {"model_class": "Edited", "site": str(self._site), "name": self.name, "of": of}

    def _edited(self, x: torch.Tensor) -> torch.Tensor:
        rows = to_rows(str(self._site), x)
        new = self._change(rows)
        if new.shape != rows.shape:
            raise InvalidRequest(
                f"Edited: the change made rows {tuple(new.shape)} of {tuple(rows.shape)} at {self._site}."
            )
        return from_rows(new.to(x.dtype), x)

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        slot = find_input(str(self._site), args, kwargs)
        return replace_input(slot, self._edited(slot.tensor), args, kwargs)

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        slot = find_output(str(self._site), output, args, kwargs)
        return replace_output(slot, self._edited(slot.tensor), output)


def without_direction(direction: torch.Tensor, centre: torch.Tensor | None = None) -> Change:
    """The change that projects a direction (d,) out of the rows' distance from a centre (d,), zero if None.

    Raises:
        InvalidRequest: no vector above zero length.
    """
    if direction.ndim != 1 or not bool(direction.norm() > 0):
        raise InvalidRequest(f"without_direction: shape {tuple(direction.shape)}; expected (d,), not all zero.")
    unit = direction / direction.norm()

    def change(rows: torch.Tensor) -> torch.Tensor:
        v = unit.to(rows)
        off = rows if centre is None else rows - centre.to(rows)
        return rows - (off @ v)[..., None] * v

    return change
