"""Where samples come from: what runs a batch through the model while its sites are recorded.

``collect`` and ``estimate`` see only this interface. ``Generation`` draws images from prompts, ``RealImages`` takes
them from a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from activations_store import StoreSpec
from activations_store.storage.objects import Place
from probe.capture.buffers import ShardBuffers
from probe.capture.recorder import Receive
from probe.capture.recording import Recording
from probe.capture.shapes import Observed
from probe.capture.sites import Site
from probe.capture.tokens import KEPT, TokenLayout
from probe.model.pipeline import Pipeline


class Trial(NamedTuple):
    """A short run that stands for a batch.

    Attributes:
        seconds: what a whole batch takes.
        images: uint8 (B, height, width, 3), as the collection would save them, or about so; None if it saves none.
        other_bytes: further files a sample (masks), on average.
    """

    seconds: float
    images: np.ndarray | None
    other_bytes: float = 0.0


class Source(Protocol):
    """Samples of one plan, ready to run."""

    pipe: Pipeline
    observed: Observed
    images: bool
    """Whether the images are saved."""
    n_extra_files: int
    """Files beside activations and images that the collection writes."""

    @property
    def plan(self) -> Recording:
        """What is collected."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of the recorded steps, ascending."""
        ...

    def run(self, receive: Receive, batch: range) -> np.ndarray | None:
        """Run samples through the model, recording its sites; their images, if the plan saves any."""
        ...

    def save_extras(self, out: Place, batch: range) -> None:
        """Write further files of these samples under the store, atomically."""
        ...

    def trial(self, n: int) -> Trial:
        """Time a batch of n samples."""
        ...


def spec_of(source: Source) -> StoreSpec:
    """The store that a source fills."""
    return source.observed.spec(source.plan, source.steps)


def store_record(source: Source) -> dict[str, Any]:
    """The plan as the store keeps it, with the tokens that are kept of each site."""
    layouts = source.observed.layouts(source.plan)
    kept = {str(site): entry for site, layout in layouts.items() if (entry := layout.record()) is not None}
    return source.plan.record() | {"images": source.images} | ({KEPT: kept} if kept else {})


def buffers_of(source: Source, spec: StoreSpec, shard: int) -> ShardBuffers:
    """Empty arrays for a shard."""
    layouts: Mapping[Site, TokenLayout] = source.observed.layouts(source.plan)
    return ShardBuffers(spec, source.plan, layouts, source.steps, shard)
