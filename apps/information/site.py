"""``denoscope info site``: one row of results, for one site, step and thing told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.errors import InvalidOption
from apps.progress import table

if TYPE_CHECKING:
    from probe.directions.rows import SiteRows
    from probe.information import Training


@dataclass(frozen=True)
class SiteRequest:
    """What is asked of one step.

    Attributes:
        told: a factor of the store, or "prompt".
        step: position in the store.
        components: of rows and embeddings.
        training: of the denoisers.
        seed: of split, null and noise.
    """

    told: str
    step: int
    components: int
    training: Training
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def site_row(
    rows: SiteRows, values: np.ndarray, request: SiteRequest, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Information of a site's rows at a step with what is told of their samples, in nats, with its null.

    A label also gets the baseline: how often a linear probe of the same components reads it, and what that says at
    least (Fano).

    Args:
        rows: of the site.
        values: (samples,) labels, the empty string where there is none, or (samples, d) embeddings.
        request: see there.
        progress: called with (done, total) training steps.

    Raises:
        InvalidOption: fewer labelled rows than an estimate takes.
        InvalidRequest: a label that never varies.
    """
    from probe.information.learned import LEAST, LearnedInformation

    samples, x = rows.gather(request.step)
    labels = values.ndim == 1
    known = values[samples] != "" if labels else np.ones(len(samples), bool)
    if known.sum() < LEAST:
        raise InvalidOption(
            f"info site: {known.sum()} rows of {rows.site} have a {request.told}; expected {LEAST} or more."
        )
    x, told = x[known], values[samples[known]]
    learned = LearnedInformation(components=request.components, training=request.training, seed=request.seed)
    learned.fit(x, told, progress=progress)
    row: dict[str, Any] = {
        "site": rows.site,
        "told": request.told,
        "step": request.step,
        "log_snr": rows.store.spec.log_snr[request.step],
        "n": learned.table_.n_images,
        "kept": learned.kept_[0],
        **(probed(x, told, request) if labels else dict.fromkeys(("at_most", "probe", "at_least"))),
    }
    for form in ("standard", "orthogonal"):
        found = learned.information(form)
        assert found.null is not None
        for name, part in ((form, found.interval()), (f"null_{form}", found.null.interval())):
            row |= {name: part.value, f"{name}_low": part.low, f"{name}_high": part.high}
        row["missing"] = found.window.missing
    return row


def probed(x: np.ndarray, labels: np.ndarray, request: SiteRequest) -> dict[str, float]:
    """What labels tell at most, and what a linear probe of the rows' components says that they tell at least."""
    from probe.information import fano
    from probe.information.learned import principal
    from probe.lenses import probe_grid

    scores = principal(x, request.components, "x")[0].numpy()
    grid = probe_grid({"x": scores[None]}, labels.tolist(), shuffles=0, seed=request.seed)
    accuracy, n, most = float(grid.accuracy[0, 0]), len(set(labels.tolist())), entropy(labels)
    return {
        "at_most": most,
        "probe": accuracy,
        "probe_low": float(grid.low[0, 0]),
        "probe_high": float(grid.high[0, 0]),
        "at_least": fano(1.0 - accuracy, n, most),
    }


def entropy(labels: np.ndarray) -> float:
    """Nats of labels by their shares: more than any rows can tell of them."""
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log(share)).sum())


_HEADER = ["site", "told", "step", "log SNR", "rows", "probe", "at least", "standard", "null", "orthogonal", "at most"]


def site_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table that people read."""
    body = []
    for row in rows:
        forms = [_interval(row, name) for name in ("standard", "null_standard", "orthogonal")]
        bound = ["" if row[name] is None else f"{row[name]:.2f}" for name in ("probe", "at_least", "at_most")]
        place = [row["site"], row["told"], str(row["step"]), f"{row['log_snr']:.1f}", str(row["n"])]
        body.append([*place, bound[0], bound[1], *forms, bound[2]])
    return table(_HEADER, body) + (
        "\n\nnats, with 95 % intervals over rows; probe: share of labels that a linear probe reads, which says at "
        "least so many nats"
    )


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"
