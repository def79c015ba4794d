"""How well a dictionary reconstructs, streamed in float64 and named precisely.

For rows x with reconstruction xh, e = x - xh, over any set of N rows:

    explained_variance             1 - sum ||e||^2 / sum ||x - mean||^2     about the mean of that set; 1 - FVU
    explained_variance_about_zero  1 - sum ||e||^2 / sum ||x||^2            about zero
    explained_variance_per_dim     mean over dimensions j of 1 - Var(e_j) / Var(x_j)

They are different numbers, so all are reported under their names. About zero, a dictionary that outputs the mean and
nothing else can score high, where rows have a large mean; the last forgives a constant error and weighs every
dimension alike. Sums are pooled over the set and divided once: averages of per-batch ratios depend on the batch size.
A value "per step" is about the mean of that step, so the overall value can exceed all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from activations_store import ActivationStore
from sae.architectures.timed import default_steps, members
from sae.contract import SparseDictionary
from sae.data import check_fits, select, stream

DENSE_ABOVE = 0.1  # a feature on in more than a tenth of all rows is called dense
ALMOST_DEAD_BELOW = 1e-5  # one on in fewer rows than this, but in some, is called almost dead


class VarianceSums:
    """Streaming sums from which both explained variances follow, for G groups of rows (for example steps)."""

    def __init__(self, n_groups: int, d: int) -> None:
        self.n = np.zeros(n_groups, dtype=np.int64)
        self._sums = {name: np.zeros((n_groups, d)) for name in ("x", "xx", "e", "ee")}

    def add(self, group: int, x: torch.Tensor, error: torch.Tensor) -> None:
        """Adds (n, d) rows and their errors x - xh to one group."""
        x, error = x.double(), error.double()
        self.n[group] += x.shape[0]
        for name, value in (("x", x), ("xx", x.square()), ("e", error), ("ee", error.square())):
            self._sums[name][group] += value.sum(0).cpu().numpy()

    def _of(self, groups: Sequence[int] | np.ndarray | None) -> tuple[int, dict[str, np.ndarray]]:
        pick = np.arange(len(self.n)) if groups is None else np.asarray(groups)
        return int(self.n[pick].sum()), {name: value[pick].sum(0) for name, value in self._sums.items()}

    def fvu(self, groups: Sequence[int] | np.ndarray | None = None) -> float:
        """Fraction of variance unexplained over some groups together (None = all); NaN if the rows do not
        vary.
        """
        variance = self.total_variance(groups)
        return float(self._of(groups)[1]["ee"].sum()) / variance if variance > 0 else float("nan")

    def total_variance(self, groups: Sequence[int] | np.ndarray | None = None) -> float:
        """sum ||x - mean||^2 over some groups together, about their common mean."""
        n, s = self._of(groups)
        return float((s["xx"] - s["x"] ** 2 / max(n, 1)).sum())

    def explained_variance(self, groups: Sequence[int] | np.ndarray | None = None) -> float:
        """1 - FVU."""
        return 1.0 - self.fvu(groups)

    def explained_variance_about_zero(self, groups: Sequence[int] | np.ndarray | None = None) -> float:
        """1 - sum ||e||^2 / sum ||x||^2; NaN if all rows are zero."""
        _, s = self._of(groups)
        power = float(s["xx"].sum())
        return 1.0 - float(s["ee"].sum()) / power if power > 0 else float("nan")

    def explained_variance_per_dim(self, groups: Sequence[int] | np.ndarray | None = None) -> float:
        """Mean over the dimensions that vary of 1 - Var(e_j) / Var(x_j)."""
        n, s = self._of(groups)
        of_x = s["xx"] - s["x"] ** 2 / max(n, 1)
        of_e = s["ee"] - s["e"] ** 2 / max(n, 1)
        # A dimension that is constant up to rounding has nothing to explain.
        varies = of_x > 1e-12 * np.maximum(s["xx"], np.finfo(float).tiny)
        return float((1.0 - of_e[varies] / of_x[varies]).mean()) if varies.any() else float("nan")

    def mse(self) -> float:
        """Mean squared error of one value."""
        n, s = self._of(None)
        return float(s["ee"].sum()) / max(1, n * s["ee"].shape[0])


def _number(value: float) -> float | None:
    """NaN is not JSON; an undefined metric is null."""
    return value if np.isfinite(value) else None


def evaluate(
    sae: SparseDictionary,
    store: ActivationStore,
    *,
    site: str | None = None,
    samples: Sequence[int] | np.ndarray | None = None,
    steps: Sequence[int] | np.ndarray | None = None,
    branches: Sequence[str] | None = None,
    max_rows: int | None = None,
    any_model: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures a dictionary on a store; one pass, memory independent of the store's size.

    Args:
        samples, steps, branches: what to read; None = everything committed, for a residual dictionary the steps
            of its training.
        max_rows: bound the work by taking fewer samples, spread evenly.
        progress: called with (done, total) rows.

    Returns:
        JSON values. Lists named `..._per_step` follow `steps`; `..._per_branch` are keyed by branch. `dead`
        counts features that were never on in these rows, `almost_dead` those on in some but in fewer than
        `almost_dead_below` of them, `dense` those on in more than `dense_above` of them.
        Undefined values are None.
    """
    chosen = select(
        store,
        check_fits(sae, store, site=site, any_model=any_model),
        samples=samples,
        steps=default_steps(sae, store) if steps is None else steps,
        branches=branches,
        max_rows=max_rows,
        blocks=sae.config.blocks,
    )
    n_steps, n_branches, d_sae = len(chosen.steps), len(chosen.branches), sae.config.d_sae
    sums = VarianceSums(n_steps * n_branches, chosen.channels)
    fired = np.zeros((n_steps, d_sae), dtype=np.int64)
    device = sae.W_dec.device
    for block in stream(store, chosen):
        maps = torch.from_numpy(block.x).to(device)
        for step, member in enumerate(members(sae, maps, chosen.log_snr)):
            x = maps[:, step]
            with torch.no_grad():
                code = member.encode_sparse(x)
                error = x - member.decode_sparse(code)
            at = step * n_branches + block.branch
            sums.add(at, x.reshape(-1, chosen.channels), error.reshape(-1, chosen.channels))
            fired[step] += torch.bincount(code.indices[code.values > 0], minlength=d_sae).cpu().numpy()
        if progress is not None:
            progress(int(sums.n.sum()), chosen.n_rows)

    groups = np.arange(n_steps * n_branches).reshape(n_steps, n_branches)
    rows_per_step = chosen.n_rows // n_steps
    density = fired.sum(0) / chosen.n_rows
    return {
        "site": chosen.site,
        "rows": chosen.n_rows,
        "samples": len(chosen.samples),
        "steps": chosen.steps.tolist(),
        "branches": list(chosen.branches),
        "explained_variance": _number(sums.explained_variance()),
        "explained_variance_about_zero": _number(sums.explained_variance_about_zero()),
        "explained_variance_per_dim": _number(sums.explained_variance_per_dim()),
        "fvu": _number(sums.fvu()),
        "mse": _number(sums.mse()),
        "ev_per_step": [_number(sums.explained_variance(g)) for g in groups],
        "ev_about_zero_per_step": [_number(sums.explained_variance_about_zero(g)) for g in groups],
        "ev_per_dim_per_step": [_number(sums.explained_variance_per_dim(g)) for g in groups],
        "ev_per_branch": {b: _number(sums.explained_variance(groups[:, i])) for i, b in enumerate(chosen.branches)},
        "ev_about_zero_per_branch": {
            b: _number(sums.explained_variance_about_zero(groups[:, i])) for i, b in enumerate(chosen.branches)
        },
        "l0": float(fired.sum() / chosen.n_rows),
        "l0_per_step": (fired.sum(1) / rows_per_step).tolist(),
        "dead": int((density == 0).sum()),
        "dead_fraction": float((density == 0).mean()),
        "dead_fraction_per_step": (fired == 0).mean(1).tolist(),
        "almost_dead": int(((density > 0) & (density < ALMOST_DEAD_BELOW)).sum()),
        "almost_dead_below": ALMOST_DEAD_BELOW,
        "dense": int((density > DENSE_ABOVE).sum()),
        "dense_fraction": float((density > DENSE_ABOVE).mean()),
        "dense_above": DENSE_ABOVE,
    }
