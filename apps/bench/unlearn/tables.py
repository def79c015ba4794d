"""From what the stages left to rows, ratios and a table.

Rows have a ``part``:

    target      a method on one target: every score with its interval, distance, cost, and UA under each attack
    average     a method over all targets of a factor, every target counting once
    setting     a setting of a method on validation images, over the targets that tried it: a point of the frontier

``ua_worst`` of an average is the UA under the attack that leaves least of it over all targets, so that a single unlucky
target does not decide; of a target, the least over attacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench.unlearn.target import UNATTACKED
from apps.measurement import bootstrap_mean
from apps.progress import percent, table
from apps.unlearning.methods import METHODS, method
from probe.unlearning.attacks import ATTACKS

if TYPE_CHECKING:
    from probe.unlearning import UnlearnScores

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
Key = tuple[str, str, str]
_COST = ("seconds_ratio", "evaluations", "plain_evaluations", "fit_seconds")
_DISTANCE = ("mmd", "mmd_unedited", "mmd_null_95")
_QUOTED = (
    *(
        "ua",
        "ira",
        "cra",
        "cra_retain",
        "artifacts",
        "artifacts_retain",
        "ua_clean",
        "change_retain",
        "ua_worst",
        "mean",
    ),
)


def target_rows(
    records: Mapping[Key, Mapping[str, Any]],
    attacked: Mapping[Key, Mapping[str, Any]],
    audited: Mapping[Key, Mapping[str, Any]],
    scores: Mapping[Key, UnlearnScores],
    retain_seeds: int,
) -> list[Row]:
    """Rows of every target, each method's average after its targets.

    Args:
        records, attacked, audited: what the stages left, by (method, factor, label).
        scores: of the records.
        retain_seeds: seeds of a prompt that does not ask for the target.
    """
    from probe.unlearning import average

    rows: list[Row] = []
    groups: dict[tuple[str, str], list[Key]] = {}
    for key in records:
        groups.setdefault(key[:2], []).append(key)
    for (name, _), keys in groups.items():
        own = []
        for key in keys:
            record = records[key]
            row = scores[key].row() | {"setting": record["setting"], "site": record["site"]}
            row |= record["distance"] | {cost: record["cost"].get(cost) for cost in _COST}
            row["mean"] = _mean_of_three(row)
            row["objective"] = record["tried"][0].get("objective")
            row |= _attack_columns([attacked[key]] if key in attacked else [])
            if key in audited:
                row |= {f"audit_{name}": value for name, value in audited[key]["means"].items()}
            own.append(row)
        mean = average([scores[key] for key in keys]).row() | {"n_targets": len(keys)}
        mean |= {column: _median(own, column) for column in _COST} | {
            column: _mean(own, column) for column in _DISTANCE
        }
        mean |= {"mmd_above_null": float(np.mean([row["mmd"] > row["mmd_null_95"] for row in own]))}
        mean |= {"mean": _mean_of_three(mean), "objective": _mean(own, "objective")}
        mean |= _attack_columns([attacked[key] for key in keys] if all(key in attacked for key in keys) else [])
        audits = [column for column in own[0] if column.startswith("audit_")]
        mean |= {column: _mean(own, column) for column in audits if all(column in row for row in own)}
        about = {"method": name, "kind": method(name).kind, "retain_seeds": retain_seeds}
        rows += [{"part": "target"} | about | row for row in own]
        rows.append({"part": "average"} | about | mean)
    return rows


def frontier_rows(records: Mapping[Key, Mapping[str, Any]]) -> list[Row]:
    """Every setting's mean on validation images."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for (name, factor, _), record in records.items():
        for tried in record["tried"]:
            if "objective" in tried:
                groups.setdefault((name, factor, tried["setting"]), []).append(tried)
    return [
        {"part": "setting", "method": name, "factor": factor, "setting": setting, "n_targets": len(found)}
        | {key: float(np.mean([tried[key] for tried in found])) for key in ("ua_clean", "ira", "cra", "objective")}
        | {"retained": float(np.mean([(tried["ira"] + tried["cra"]) / 2 for tried in found]))}
        for (name, factor, setting), found in groups.items()
    ]


def ratios_of(rows: Rows, best_sae: Mapping[str, str]) -> dict[str, float | None]:
    """Averages that others quote: of the best feature method, and of ESD and UCE with their names before."""
    by_key = {(row["method"], row["factor"]): row for row in rows if row["part"] == "average"}
    found: dict[str, float | None] = {}
    for (name, factor), row in by_key.items():
        prefixes = [f"{name}_"] if name in ("esd", "uce", "no_edit") else []
        prefixes += [""] if best_sae.get(factor) == name else []
        for prefix in prefixes:
            found |= {f"{prefix}{factor}_{score}": row[score] for score in _QUOTED if score in row}
    return found


def scores_table(rows: Rows) -> str:
    """Averages over targets for people, in percent with intervals."""
    columns = ("ua", "ira", "cra", "artifacts", "ua_clean", "change_retain")
    titles = ["", "targets", "UA", "IRA", "CRA", "artifacts", "UA clean", "change", "MMD x null", "UA attacked", "cost"]
    body = []
    for row in (row for row in rows if row["part"] == "average"):
        null = row["mmd_null_95"]
        body.append(
            [f"{row['factor']}: {row['method']}", str(row["n_targets"]), *(percent(row, column) for column in columns),
             f"{row['mmd'] / null:.1f}" if null else "-",
             _share(row.get("ua_worst")),
             "-" if row["seconds_ratio"] is None else f"{row['seconds_ratio']:.2f}"]
        )  # fmt: skip
    return table(titles, body)


def markdown_table(rows: Rows) -> str:
    """Averages over targets as a Markdown table, in percent."""
    shown = [row for row in rows if row["part"] == "average"]
    attacks = attack_names(shown)
    columns = {"UA": "ua", "IRA": "ira", "CRA": "cra", "mean": "mean", "artifacts": "artifacts", "UA clean": "ua_clean"}
    columns |= {"change elsewhere": "change_retain"} | {f"UA after {name}": f"ua_after_{name}" for name in attacks}
    lines = [["factor", "method", *columns], ["---"] * (2 + len(columns))]
    lines += [[row["factor"], row["method"], *(_share(row.get(key)) for key in columns.values())] for row in shown]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def attack_names(rows: Rows) -> list[str]:
    """Attacks that some row was under, in order."""
    return [name for name in ATTACKS if any(row.get(f"ua_after_{name}") is not None for row in rows)]


def _attack_columns(attacked: Sequence[Mapping[str, Any]]) -> Row:
    """UA under each attack, None where it was not run or does not take these edits; intervals resample targets, or the
    images of a single one.
    """
    row: Row = {"ua_worst": None, "strongest_attack": None, "ua_before_attack": None}
    row |= {f"ua_after_{name}": None for name in ATTACKS}
    after: dict[str, float] = {}
    for name in attacked[0]["attacks"] if attacked else ():
        found = [record["attacks"][name] for record in attacked]
        if any("refused" in one for one in found):
            continue
        kept = [[not back for back in one["back"]] for one in found]
        clusters = [i for i, images in enumerate(kept) for _ in images] if len(kept) > 1 else None
        value, low, high = bootstrap_mean([float(k) for images in kept for k in images], clusters)
        column = "ua_before_attack" if name == UNATTACKED else f"ua_after_{name}"
        row |= {column: value, f"{column}_low": low, f"{column}_high": high}
        if name != UNATTACKED:
            after[name] = value
    if after:
        strongest = min(after, key=lambda name: after[name])
        row |= {"ua_worst": after[strongest], "strongest_attack": strongest}
    return row


def _mean_of_three(row: Mapping[str, Any]) -> float:
    return float(np.mean([row[score] for score in ("ua", "ira", "cra")]))


def _mean(rows: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(values)) if values else None


def _median(rows: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return float(np.median(values)) if values else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def kinds_in_order(rows: Rows) -> list[str]:
    """Methods of the rows in the registry's order."""
    present = {row["method"] for row in rows}
    return [name for name in METHODS if name in present]
