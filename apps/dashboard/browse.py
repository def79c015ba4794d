"""What the pages show as text and tables, from bundles and stores. No Streamlit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from sae import FeatureBundle


def labelled(bundle: FeatureBundle) -> list[str]:
    """Factors with at least two concepts: with one there is nothing to tell apart."""
    return [factor for factor in bundle.factors if len(bundle.concepts[factor]) > 1]


def best_factor(row: Mapping[str, Any], factors: Sequence[str]) -> str | None:
    """The factor whose concept a feature tells best, from its row of the table; None for a dead feature."""
    told = [factor for factor in factors if row[f"best_{factor}"]]
    return max(told, key=lambda factor: row[f"auc_{factor}"], default=None)


def best(frame: pd.DataFrame, factors: Sequence[str], factor: str = "any") -> pd.DataFrame:
    """For each feature the concept it tells best, among all factors or within one: columns factor, concept, auc."""
    names = [factor] if factor in factors else list(factors)
    if not names:
        return pd.DataFrame({"factor": "", "concept": "", "auc": float("nan")}, index=frame.index)
    aucs = frame[[f"auc_{name}" for name in names]].to_numpy()
    at = aucs.argmax(axis=1)
    concepts = frame[[f"best_{name}" for name in names]].to_numpy(dtype=object)
    rows = range(len(frame))
    return pd.DataFrame(
        {
            "factor": [names[i] for i in at],
            "concept": [concepts[row, i] or "" for row, i in zip(rows, at, strict=True)],
            "auc": aucs[rows, at],
        },
        index=frame.index,
    )


def chosen(
    frame: pd.DataFrame,
    factors: Sequence[str],
    *,
    factor: str = "any",
    concept: str = "any",
    least_auc: float = 0.5,
    dead: bool = False,
    dense: bool = True,
) -> pd.DataFrame:
    """The features that pass the filters, best AUC first."""
    keep = pd.Series(True, index=frame.index)
    found = best(frame, factors, factor)
    if not dead:
        keep &= ~frame["dead"]
    if not dense:
        keep &= ~frame["dense"]
    if factor != "any" and concept != "any":
        keep &= found["concept"] == concept
    if factors and least_auc > 0.5:
        keep &= found["auc"] >= least_auc
    joined = frame.assign(**{f"shown_{name}": found[name] for name in found}).loc[keep]
    order = ["shown_auc", "feature"] if factors else ["density", "feature"]
    return joined.sort_values(order, ascending=[False, True], kind="stable")


def tightest(frame: pd.DataFrame, factors: Sequence[str], **filters: Any) -> str:
    """A sentence that names the filter that alone excludes most, for an empty table."""
    open_filters = {"factor": filters["factor"], "concept": "any", "least_auc": 0.5, "dead": True, "dense": True}
    names = {
        "concept": "the concept",
        "least_auc": "the AUC",
        "dead": "hiding dead features",
        "dense": "hiding dense features",
    }
    left = {name: len(chosen(frame, factors, **open_filters | {name: filters[name]})) for name in names}
    worst = min(left, key=lambda name: left[name])
    return f"No feature passes these filters. The tightest one is {names[worst]}; relax it."


def table(found: pd.DataFrame, factors: Sequence[str], factor: str = "any") -> pd.DataFrame:
    """Columns of the feature browser."""
    columns: dict[str, Any] = {
        "Feature": found["feature"],
        "Density": 100 * found["density"],
        "Images": 100 * found["sample_fraction"],
        "Max": found["max"],
        "Peak step": found["peak_step"].where(found["peak_step"] >= 0),
    }
    if factors:
        several = factor == "any" and len(factors) > 1
        names = found["shown_factor"] + ": " + found["shown_concept"] if several else found["shown_concept"]
        columns["Concept"] = names.where(found["shown_concept"] != "", "")
        columns["AUC"] = found["shown_auc"]
    columns["Over steps"] = found["profile"]
    columns["State"] = [state(dead, dense) for dead, dense in zip(found["dead"], found["dense"], strict=True)]
    return pd.DataFrame(columns)


def map_groups(frame: pd.DataFrame, factors: Sequence[str]) -> dict[str, list[tuple[int, float, float, str]]]:
    """Points of ``figures.feature_map``: living features by the factor whose concept they tell best."""
    alive = frame.loc[~frame["dead"]]
    told = best(alive, factors)
    groups: dict[str, list[tuple[int, float, float, str]]] = {factor: [] for factor in factors or ("features",)}
    columns = (alive["feature"], alive["layout_x"], alive["layout_y"], told["factor"], told["concept"], told["auc"])
    for feature, x, y, factor, concept, auc in zip(*columns, strict=True):
        text = f"{concept}, AUC {auc:.2f}" if factor else "no labels"
        groups[factor or "features"].append((int(feature), float(x), float(y), text))
    return {name: points for name, points in groups.items() if points}


def state(dead: bool, dense: bool) -> str:
    """dead, dense, or nothing."""
    return "dead" if dead else "dense" if dense else ""


def model_name(fingerprint: Mapping[str, Any]) -> str:
    """Name and class of a model."""
    return " · ".join(str(fingerprint[key]) for key in ("name", "model_class") if fingerprint.get(key))


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of nested JSON, in order."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        rows += flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else [(f"{prefix}{key}", str(item))]
    return rows


def provenance(bundle: FeatureBundle) -> list[str]:
    """What a page's numbers were made from."""
    info = bundle.info
    weights = str(info["store"]["fingerprint"].get("weights_hash", ""))[:8]
    return [
        model_name(info["store"]["fingerprint"]),
        f"weights {weights}" if weights else "",
        info["site"],
        f"branch {info['branch']}",
        f"{len(bundle.steps)} steps",
        f"{bundle.n_samples:,} images",
        f"bundle {bundle.bundle_hash[:8]}",
    ]


def size(n_bytes: int) -> str:
    """Bytes for a reader: ``3.2 GB``."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
