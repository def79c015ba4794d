"""Labels read off the denoiser's errors, and their information beside its exact value.

A factor of canvas is one of K values, equally likely, and the image shows which: I(factor; image) = H(factor) = log K.
Four estimates of it, from one table with a column a value:

    posterior     H(factor) less the mean entropy of the label given the image; cannot exceed log K
    at least      Fano's bound H - h(e) - e log(K - 1) by the share e of labels read wrongly: holds for any reader,
                  also for one that is surer than it should be
    standard      the network's own two sides: error with nothing said less error with the word
    orthogonal    squared difference of the two sides

The last two are exact for the exact denoiser only. Where the label is decided by the levels below (``decided_at``: its
mean entropy is under a hundredth of the prior's), the exact denoiser has no gap left: what the network still has there
(``after``) is its own error, not information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.measurement import bootstrap_mean, wilson

if TYPE_CHECKING:
    from probe.information import Column, NodeTable

LABEL = "label"
DECIDED = 0.01


def label_columns(names: Sequence[Mapping[str, str]], factor: str) -> list[Column]:
    """Nothing said, each image's own word, and every value of the factor."""
    from probe.canvas import FACTORS
    from probe.canvas.captions import partial_caption
    from probe.information import Column, class_columns

    own = [partial_caption({factor: given[factor]}) for given in names]
    values = {value: partial_caption({factor: value}) for value in FACTORS[factor]}
    return [Column("empty"), Column(LABEL, own), *class_columns(len(names), values)]


def label_rows(table: NodeTable, factor: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One row of a factor."""
    from probe.canvas import FACTORS
    from probe.information import classify, fano, information, running_labels

    classes = FACTORS[factor]
    found = classify(table, classes)
    hits = [found.classes[k] == label for k, label in zip(found.best, labels, strict=True)]
    accuracy = wilson(int(np.sum(hits)), len(hits))
    level, rest = table.log_snr[0], [float(f.entropy.mean()) for f in running_labels(table, classes)]
    decided = next((j for j, h in enumerate(rest) if max(rest[j:]) < DECIDED * found.prior_entropy), None)
    row: dict[str, Any] = {
        "part": "labels",
        "factor": factor,
        "values": len(classes),
        "n": len(labels),
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "entropy": found.prior_entropy,
        "at_least": fano(1.0 - accuracy.value, len(classes), found.prior_entropy),
        "decided_at": None if decided is None else float(level[decided]),
    }
    each = {"posterior": found.prior_entropy - found.entropy}
    for form in ("standard", "orthogonal"):
        part = information(table, LABEL, form=form)
        each[form] = part.pointwise
        after = 0.0 if decided is None else float(part.terms[:, decided + 1 :].sum(1).mean())
        row |= {f"{form}_after": after, f"{form}_before": part.mean - after}
        row["missing"] = part.window.missing
    for name, values in each.items():
        interval = bootstrap_mean(values)
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return [row]
