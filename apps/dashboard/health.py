"""Is this dictionary, and the store below it, to be trusted? Each check has a value, a threshold and a reason.

A threshold is where a reader should look closer, not a verdict. What has not been measured is named with the command
that measures it. No Streamlit: numbers in, checks out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.dashboard.store_records import StoreRecords

EXPLAINED_BELOW = 0.7  # much of what the site carries would be outside of the dictionary
STEP_BELOW = 0.5  # of the worst step: features of that step describe the lesser part of it
DEAD_ABOVE = 0.1  # features that cost room and do nothing; more of them: too wide, or a rate too high
DENSE_ABOVE = 0.1  # of the features; a dense feature's examples say little
RECOVERED_BELOW = 0.9  # the model notices the dictionary
SHARED_BELOW = 0.3  # about the share between seeds that Paulo & Belrose (2025, arXiv 2501.16615) found

OK, WARNING, MISSING = "ok", "warning", "not measured"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what is looked at.
        found: its value, as text.
        threshold: when it warns, as text.
        state: "ok", "warning" or "not measured".
        why: what a warning means; of what is missing, nothing.
        command: what measures it, after ``denoscope``, with {run} and {name} to fill in; empty if it is measured.
    """

    name: str
    found: str
    threshold: str
    state: str
    why: str = ""
    command: str = ""


def dictionary_checks(metrics: Mapping[str, Any], table: Mapping[str, np.ndarray] | None) -> list[Check]:
    """Reconstruction, and how many features are dead or dense.

    Args:
        metrics: ``metrics.json`` of a dictionary; {} if there is none.
        table: columns ``dead`` and ``dense`` of its bundle, which override the metrics: they are of more rows.
    """
    train = "train {run}/store --site SITE"
    per_step = [v for v in metrics.get("ev_per_step") or () if v is not None]
    where = "" if metrics.get("held_out", True) else ", on samples of the training"
    checks = [
        _low("Explained variance", metrics.get("explained_variance"), EXPLAINED_BELOW,
             "Much of what the site carries is not in the dictionary.", train, where),
        _low("Explained variance of the worst step", min(per_step, default=None), STEP_BELOW,
             "Features seen at that step describe the lesser part of it.", train),
    ]  # fmt: skip

    def share(what: str) -> float | None:
        return metrics.get(f"{what}_fraction") if table is None else float(np.mean(table[what]))

    dead, dense = share("dead"), share("dense")
    checks.append(
        _high("Dead features", dead, DEAD_ABOVE, "They take room and never fire: fewer, or a lower rate.", train)
    )
    checks.append(
        _high("Dense features", dense, DENSE_ABOVE, "On in a tenth of all rows or more; examples say little.", train)
    )
    return checks


def splice_check(row: Mapping[str, Any] | None) -> Check:
    """Loss recovered with the dictionary in place, from a row of ``sae eval --substitute``."""
    return _low(
        "Loss recovered in place of the site",
        None if row is None else row.get("recovered_over_mean"),
        RECOVERED_BELOW,
        "The model notices the dictionary in place of the site: what is left out matters to it.",
        "sae eval {run} --sae {name} --substitute 16 --out {run}/{name}-eval.json",
        "" if row is None else interval(row, "recovered_over_mean", percent=True),
    )


def seed_check(row: Mapping[str, Any] | None) -> Check:
    """Features shared with a dictionary of another seed, from a row of ``sae compare``."""
    name = "Features shared between seeds (by decoder)"
    text = f"below {100 * SHARED_BELOW:.0f} %, or as alike as an untrained one"
    if row is None:
        return Check(
            name, "", text, MISSING, command="sae compare {run}/sae/{name} {run}/sae/OTHER --out {run}/seeds.json"
        )
    share, null = float(row["decoder_shared"]), float(row["decoder_null_mean"])
    chance = float(row.get("decoder_mean_low", row["decoder_mean"])) <= null
    weak = chance or share < SHARED_BELOW
    found = f"{100 * share:.0f} %; mean cosine {row['decoder_mean']:.2f}, untrained {null:.2f}"
    why = "Another seed finds other features: one of them alone is no evidence." if weak else ""
    return Check(name, found, text, WARNING if weak else OK, why)


def store_checks(records: StoreRecords | None, n_samples: int, n_committed: int) -> list[Check]:
    """Whether the store is whole, and holds numbers."""
    if records is None:
        return [Check("Samples stored", "", "if any is missing", MISSING, command="collect --out {run}")]
    bad, over = int(records.bad.sum()), int(records.overflow.sum())
    of = "" if records.n_read == records.n_committed else f" in {records.n_read:,} of {records.n_committed:,} shards"
    holes = int((records.recorded < n_committed / n_samples - 1e-12).sum()) if n_samples else 0
    overflow = f", {over:,} of them too large for the stored dtype" if over else ""
    return [
        Check(
            "Samples stored",
            f"{n_committed:,} of {n_samples:,}",
            "if any is missing",
            OK if n_committed == n_samples else WARNING,
            "" if n_committed == n_samples else "The collection is unfinished; the same command goes on.",
        ),
        Check(
            "Values that are no numbers",
            f"{bad:,}{of}{overflow}",
            "if there are any",
            WARNING if bad else OK,
            "A row with one of them makes every mean over it useless." if bad else "",
        ),
        Check(
            "Site, branch and step with missing maps",
            f"{holes:,}",
            "if there are any",
            WARNING if holes else OK,
            "Means over steps are of different samples there." if holes else "",
        ),
    ]


def rows_of(findings: Sequence[Rows], part: str, dictionary: str) -> list[Mapping[str, Any]]:
    """Rows of a part that are about a dictionary, from the last file that has any."""
    for rows in reversed(findings):
        own = [
            row for row in rows if row.get("part") == part and dictionary in (row.get("dictionary"), row.get("other"))
        ]
        if own:
            return own
    return []


def interval(row: Mapping[str, Any], key: str, *, percent: bool = False) -> str:
    """Its 95 % interval as text: `` (92.1 to 95.0 %)``; empty where the row has none."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None:
        return ""
    return f" ({100 * low:.1f} to {100 * high:.1f} %)" if percent else f" ({low:.2f} to {high:.2f})"


def _low(name: str, value: float | None, limit: float, why: str, command: str, more: str = "") -> Check:
    text = f"below {100 * limit:.0f} %"
    if value is None:
        return Check(name, "", text, MISSING, command=command)
    weak = value < limit
    return Check(name, f"{100 * value:.1f} %{more}", text, WARNING if weak else OK, why if weak else "")


def _high(name: str, value: float | None, limit: float, why: str, command: str) -> Check:
    text = f"above {100 * limit:.0f} %"
    if value is None:
        return Check(name, "", text, MISSING, command=command)
    much = value > limit
    return Check(name, f"{100 * value:.1f} %", text, WARNING if much else OK, why if much else "")
