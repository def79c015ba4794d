"""Where in the network, and at which noise, is a label linearly there? A probe for every site and step.

Each sample is one vector (its map averaged over cells). Multinomial logistic regression on the standardised vectors of
half the samples names the labels of the other half; its accuracy carries a 95 % Wilson interval (Wilson 1927). Beside
it stands the accuracy of the same probe taught shuffled labels: what there is to be had by chance, with these samples
and these label shares. A probe shows what can be read, not what the model uses; that is for interventions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from activations_store import ActivationStore
from probe.directions.rows import SiteRows
from probe.errors import InvalidRequest


@dataclass(frozen=True, eq=False)
class ProbeGrid:
    """Accuracies over (sites, steps).

    Attributes:
        sites: names.
        log_snr: of the steps; empty if unknown.
        accuracy, low, high: (sites, steps), with the 95 % interval.
        null: (sites, steps, shuffles) accuracies with shuffled labels.
        n_held_out: samples that were asked.
    """

    sites: tuple[str, ...]
    log_snr: tuple[float, ...]
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null: np.ndarray
    n_held_out: int

    @property
    def best(self) -> tuple[str, int]:
        """Site and step of the highest accuracy; chosen on the same samples, so optimistic for many cells."""
        site, step = np.unravel_index(int(self.accuracy.argmax()), self.accuracy.shape)
        return self.sites[int(site)], int(step)


def probe_grid(
    vectors: Mapping[str, np.ndarray],
    labels: Sequence[str],
    *,
    log_snr: Sequence[float] = (),
    strength: float = 1.0,
    shuffles: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeGrid:
    """Probe every site and step.

    Args:
        vectors: for each site (steps, samples, channels): ``Features.vectors()`` or ``store_vectors``.
        labels: one a sample.
        log_snr: of the steps, for the record.
        strength: inverse of the L2 penalty.
        shuffles: shuffled-label probes a cell.
        seed: of the halves and the shuffles.
        progress: called with (done, total) probes.

    Raises:
        InvalidRequest: numbers that do not fit, or fewer than two labels in the teaching half.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.lenses import probe_grid, store_vectors
        >>> store = ActivationStore.open("runs/x/store")
        >>> vectors, samples = store_vectors(store, ["unet.mid_block:out"])
        >>> probe_grid(vectors, store.labels("background")[samples], shuffles=1).accuracy.shape
        (1, 2)
    """
    names, n = np.asarray(labels), len(labels)
    steps = {v.shape[0] for v in vectors.values()}
    if not vectors or len(steps) != 1 or any(v.ndim != 3 or v.shape[1] != n for v in vectors.values()):
        raise InvalidRequest(
            f"probe_grid: vectors {[v.shape for v in vectors.values()]} for {n} labels; expected (steps, samples, "
            "channels) with equally many steps."
        )
    rng = np.random.default_rng(seed)
    teach = rng.permutation(n) < (n + 1) // 2
    if len(set(names[teach])) < 2:
        raise InvalidRequest("probe_grid: the teaching half has fewer than two labels; give more samples.")
    shape = (len(vectors), steps.pop())
    hits, null = np.zeros(shape, int), np.zeros((*shape, shuffles))
    for i, found in enumerate(vectors.values()):
        for step in range(shape[1]):
            hits[i, step] = _hits(found[step], names, teach, strength)
            for k in range(shuffles):
                null[i, step, k] = _hits(found[step], rng.permutation(names), teach, strength) / (~teach).sum()
            if progress is not None:
                progress(i * shape[1] + step + 1, shape[0] * shape[1])
    held = int((~teach).sum())
    intervals = [binomtest(int(h), held).proportion_ci(method="wilson") for h in hits.ravel()]
    low, high = (np.reshape([getattr(i, end) for i in intervals], shape) for end in ("low", "high"))
    return ProbeGrid(tuple(vectors), tuple(log_snr), hits / held, low, high, null, held)


def store_vectors(
    store: ActivationStore, sites: Sequence[str], *, branch: str = "cond", steps: tuple[int, ...] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mean rows of a store's sites for ``probe_grid``: ({site: (steps, samples, channels)}, (samples,) their numbers).

    Args:
        store: where they are.
        sites: full names.
        branch: of guidance.
        steps: positions of the store's steps; None for all.

    Raises:
        UnknownSite, InvalidSelection: something the store does not have.
        InvalidRequest: a sample lacks a finite row at some site or step.
    """
    found: dict[str, np.ndarray] = {}
    numbers: np.ndarray | None = None
    for site in sites:
        rows = SiteRows(store, site, branch, "mean", steps)
        parts = [rows.gather(step) for step in rows.chosen]
        for samples, _ in parts:
            numbers = samples if numbers is None else numbers
            if not np.array_equal(samples, numbers):
                raise InvalidRequest(f"store_vectors: {site} lacks rows of some samples; repair the store first.")
        found[site] = np.stack([vectors for _, vectors in parts])
    if numbers is None:
        raise InvalidRequest("store_vectors: no site was given.")
    return found, numbers


def _hits(vectors: np.ndarray, labels: np.ndarray, teach: np.ndarray, strength: float) -> int:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with warnings.catch_warnings():
        # Three hundred iterations are what a light probe is allowed; where it stops is its answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors[teach], labels[teach])
    return int(np.sum(model.predict(vectors[~teach]) == labels[~teach]))
