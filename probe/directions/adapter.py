"""Low-rank changes of weights as directions: W + strength * up_i down_i at some layers, k of them.

An adapter (LoRA, Hu et al. 2022) is a direction in the space of weights. It becomes interventions as other directions
do, one for each layer, so that it is put in place and taken out without touching the model's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from activations_store.storage.jsonio import content_hash, normalise
from probe.capture.sites import Site
from probe.directions.direction import tensor_hash
from probe.errors import InvalidDirection
from probe.interventions import Intervention, LowRank
from probe.model.pipeline_eps import PipelineEps


@dataclass(frozen=True, eq=False)
class Adapter:
    """k low-rank changes of the weights of some linear layers.

    Attributes:
        up: for each weight site, such as ``unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k:weight``,
            (k, n_out, rank).
        down: (k, rank, n_in).
        provenance: JSON values.
    """

    up: Mapping[str, torch.Tensor]
    down: Mapping[str, torch.Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site, up in self.up.items():
            down = self.down.get(site)
            if down is None or up.ndim != 3 or down.ndim != 3 or up.shape[::2] != (len(down), down.shape[1]):
                raise InvalidDirection(
                    f"Adapter at {site}: up {tuple(up.shape)}, down {None if down is None else tuple(down.shape)}; "
                    "expected (k, n_out, rank) and (k, rank, n_in)."
                )
        if not self.up or len({len(up) for up in self.up.values()}) > 1 or set(self.up) != set(self.down):
            raise InvalidDirection("Adapter: expected the same number of components at each of one or more layers.")
        for name in ("up", "down"):
            given = getattr(self, name)
            object.__setattr__(self, name, {site: given[site].detach().cpu().float() for site in given})
        object.__setattr__(self, "provenance", normalise(dict(self.provenance)))

    @property
    def k(self) -> int:
        """Components."""
        return len(next(iter(self.up.values())))

    @property
    def hash(self) -> str:
        """SHA-256 over everything, hexadecimal."""
        parts = {site: [tensor_hash(self.up[site]), tensor_hash(self.down[site])] for site in self.up}
        return content_hash({"provenance": dict(self.provenance), "weights": parts})

    def change(self, site: str, component: int) -> torch.Tensor:
        """The change of one weight, (n_out, n_in)."""
        return self.up[site][component] @ self.down[site][component]

    def interventions(
        self, component: int = 0, strength: float = 1.0, *, steps: range | None = None
    ) -> tuple[Intervention, ...]:
        """The edits that put one of the changes in place, one a layer."""
        if not -self.k <= component < self.k:
            raise InvalidDirection(f"Adapter: component {component}; there are {self.k}.")
        return tuple(
            Intervention(
                site, LowRank(self.up[site][component], self.down[site][component]), steps=steps, strength=strength
            )
            for site in self.up
        )


def random_adapter(like: Adapter, seed: int) -> Adapter:
    """A control: at every layer a random change of the same rank and Frobenius norm."""
    generator = torch.Generator().manual_seed(seed)
    up: dict[str, torch.Tensor] = {}
    down: dict[str, torch.Tensor] = {}
    for site in like.up:
        up[site], down[site] = (torch.randn(x.shape, generator=generator) for x in (like.up[site], like.down[site]))
        norms = [torch.linalg.matrix_norm(u @ d) for u, d in ((like.up[site], like.down[site]), (up[site], down[site]))]
        up[site] = up[site] * (norms[0] / norms[1].clamp(min=1e-30))[:, None, None]
    return Adapter(up, down, {"finder": "random", "seed": seed, "like": like.hash})


@contextmanager
def adapted(model: PipelineEps, up: Mapping[str, torch.Tensor], down: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the block, every row b of a denoiser call runs with its own change up[site][b] @ down[site][b].

    Written as a second path beside each layer, so that it can be trained and that rows may differ.

    Args:
        model: the pipeline.
        up: (B, n_out, rank) for each weight site.
        down: (B, rank, n_in).
    """

    def beside(u: torch.Tensor, d: torch.Tensor) -> Any:
        def after(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            return output + (args[0] @ d.mT) @ u.mT

        return after

    with ExitStack() as stack:
        for site in up:
            module = Site(Site.parse(site).path, "out").module(model.pipe)
            stack.callback(module.register_forward_hook(beside(up[site], down[site])).remove)
        yield
