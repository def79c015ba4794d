"""The report of ``denoscope sae eval``: one HTML file with interactive figures that loads nothing from anywhere.

The figures are Plotly's, whose script is written into the page (about five megabytes). Tables hold the same numbers as
the JSON file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from apps import report as html
from apps.dictionaries.evaluate import Row
from apps.errors import MissingExtra
from apps.runs import site_name

_DEFINITIONS = (
    ("explained variance", "1 - sum |x - xh|^2 / sum |x - mean|^2: about the mean of the rows; 1 - FVU"),
    ("... about zero", "1 - sum |x - xh|^2 / sum |x|^2; higher where rows have a large mean"),
    ("L0", "features on for a row"),
    ("dead, almost dead, dense", "on in no row; in fewer than almost_dead_below; in more than dense_above"),
    ("AUC of a concept", "of the unit chosen on the training samples, on held-out samples"),
    ("false discoveries", "concepts found with shuffled labels over concepts found with the true ones"),
    ("IoU", "overlap of a unit's map with the object's mask, unit and threshold chosen on training samples"),
    ("loss recovered", "(L_ablate - L_sae) / (L_ablate - L_clean), L against the unedited output at the same x_t"),
    ("class spread", "standard deviation of the class number over a unit's ten strongest samples, mean over units"),
    ("light probe", "held-out accuracy of logistic regression on maps averaged over cells"),
)


def write_sae_report(path: Path, record: Mapping[str, Any]) -> None:
    """Write the page of a measurement file's content.

    Raises:
        MissingExtra: Plotly is not installed.
    """
    try:
        import plotly.io
    except ImportError as error:
        raise MissingExtra(
            "The report draws with Plotly: pip install 'denoscope[app]', or pass --no-report for the JSON file alone."
        ) from error
    rows: list[Row] = list(record["rows"])
    parts = {name: [r for r in rows if r["part"] == name] for name in dict.fromkeys(r["part"] for r in rows)}
    figures = _Figures(plotly.io.to_html)
    body = [
        html.heading("What these dictionaries know", "Reconstruction, concepts, and what the model makes of them."),
        _reconstruction(parts, figures),
    ]
    if "recovery" in parts:
        body.append(_concepts(parts, figures))
    if "grid" in parts:
        body.append(_grid(parts["grid"], figures))
    if "substitution" in parts:
        body.append(_substitution(parts, figures))
    body.append(html.section("Definitions", html.definitions(_DEFINITIONS)))
    about = [(k, str(v)) for k, v in {**record["machine"], **record["versions"]}.items()]
    body.append(html.section("Made with", html.definitions(about)))
    html.write_page(path, html.page("denoscope: dictionaries", body, scripts=True))


class _Figures:
    """Turns Plotly figures into HTML; the first carries the script."""

    def __init__(self, to_html: Any) -> None:
        self._to_html, self._n = to_html, 0

    def __call__(self, figure: Any, described: str) -> str:
        figure.update_layout(
            template="plotly_white", margin={"l": 60, "r": 20, "t": 36, "b": 50}, height=figure.layout.height or 340
        )
        self._n += 1
        drawn = self._to_html(
            figure,
            full_html=False,
            include_plotlyjs="inline" if self._n == 1 else False,
            config={"displaylogo": False, "responsive": True},
            div_id=f"figure-{self._n}",  # not random: the same numbers give the same page
        )
        return f'<figure role="img" aria-label="{escape(described)}">{drawn}</figure>'


def _lines(rows: Sequence[Row], x: str, y: str, by: str, *, y_title: str, dash: str | None = None) -> list[Any]:
    import plotly.graph_objects as go

    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row[by]), []).append(row)
    return [
        go.Scatter(
            x=[r[x] for r in group],
            y=[r[y] for r in group],
            name=f"{name}{y_title}",
            mode="lines+markers",
            line={"dash": dash} if dash else {},
        )
        for name, group in groups.items()
    ]


def _reconstruction(parts: Mapping[str, Sequence[Row]], figures: _Figures) -> str:
    import plotly.graph_objects as go

    columns = ("explained_variance", "explained_variance_about_zero", "l0", "dead", "almost_dead", "dense")
    shown = [
        [r["dictionary"], r["site"], f"{r['features']}", *(_number(r[c]) for c in columns)]
        for r in parts["reconstruction"]
    ]
    titles = ("dictionary", "site", "features", "EV", "EV about zero", "L0", "dead", "almost dead", "dense")
    by_branch = [
        [r["dictionary"], r["branch"], _number(r["explained_variance"]), _number(r["explained_variance_about_zero"])]
        for r in parts.get("branch", ())
    ]
    steps = parts["step"]
    over_steps = go.Figure(
        _lines(steps, "step", "explained_variance", "dictionary", y_title="")
        + _lines(steps, "step", "explained_variance_about_zero", "dictionary", y_title=", about zero", dash="dot")
    )
    over_steps.update_layout(title="Explained variance", xaxis_title="step (0 = most noise)", yaxis_title="share")
    cosines = go.Figure()
    for name in dict.fromkeys(r["dictionary"] for r in parts.get("cosine", ())):
        own = [r for r in parts["cosine"] if r["dictionary"] == name]
        middle = [(r["from"] + r["to"]) / 2 for r in own]
        for what in ("pairs", "nearest"):
            cosines.add_bar(x=middle, y=[r[what] for r in own], name=f"{name}, {what}", opacity=0.6)
    cosines.update_layout(
        title="Cosines of decoder rows", barmode="overlay", xaxis_title="cosine", yaxis_title="share of pairs, features"
    )
    return html.section(
        "Reconstruction",
        html.data_table(titles, shown),
        html.data_table(("dictionary", "branch", "EV", "EV about zero"), by_branch),
        figures(
            over_steps, "explained variance of each dictionary over denoising steps, about the mean and about zero"
        ),
        figures(cosines, "histogram of the cosines between decoder rows, all pairs and nearest neighbours"),
    )


def _concepts(parts: Mapping[str, Sequence[Row]], figures: _Figures) -> str:
    titles = ("dictionary", "units", "AUC", "F1", "correlation", "AUC > 0.95", "units each", "false discoveries", "IoU")
    table = [
        [r["dictionary"], r["units"], *(_interval(r, m) for m in ("auc", "f1", "correlation")),
         f"{r['recovered']:.0f} of {r['concepts']}", _number(r["units_per_concept"]),
         _number(r["false_discovery_rate"]), _interval(r, "iou") if "iou" in r else "-"]
        for r in parts["recovery"]
    ]  # fmt: skip
    drawn = []
    for name in dict.fromkeys(r["dictionary"] for r in parts["concept"]):
        own = [r for r in parts["concept"] if r["dictionary"] == name]
        units = list(dict.fromkeys(r["units"] for r in own))
        concepts = list(dict.fromkeys(f"{r['factor']}: {r['concept']}" for r in own))
        value = {(r["units"], f"{r['factor']}: {r['concept']}"): r["auc"] for r in own}
        figure = _heat([[value.get((u, c)) for u in units] for c in concepts], units, concepts, "AUC", (0.5, 1.0))
        figure.update_layout(title=f"{name}: AUC of the best unit for each concept", height=120 + 18 * len(concepts))
        drawn.append(figures(figure, f"AUC of each concept for {name} and for what was there before it"))
    return html.section("Concepts", html.data_table(titles, table), *drawn)


def _grid(rows: Sequence[Row], figures: _Figures) -> str:
    drawn = []
    for factor in dict.fromkeys(r["factor"] for r in rows):
        for key, title, reverse in (("probe", "light probe accuracy", False), ("spread", "class spread", True)):
            own = [r for r in rows if r["factor"] == factor and r.get(key) is not None]
            if not own:
                continue
            sites, steps = (list(dict.fromkeys(r[k] for r in own)) for k in ("site", "step"))
            value = {(r["site"], r["step"]): r[key] for r in own}
            figure = _heat(
                [[value.get((s, t)) for t in steps] for s in sites], steps, [site_name(s) for s in sites], title, None
            )
            figure.update_traces(reversescale=reverse)
            chance = own[0]["chance"] if key == "probe" else own[0]["spread_shuffled"]
            figure.update_layout(
                title=f"{factor}: {title} (by chance {_number(chance)})", xaxis_title="step (0 = most noise)",
                height=150 + 40 * len(sites),
            )  # fmt: skip
            drawn.append(figures(figure, f"{title} of {factor} for every site and step"))
    return html.section("Where and when is the class known?", *drawn)


def _substitution(parts: Mapping[str, Sequence[Row]], figures: _Figures) -> str:
    import plotly.graph_objects as go

    table = [
        [r["dictionary"], _interval(r, "recovered_over_mean"), _interval(r, "recovered_over_zero")]
        for r in parts["substitution"]
    ]
    images = [
        [r["dictionary"], r["variant"], _interval(r, "accuracy_kept") if "accuracy_kept" in r else "-",
         _number(r["pixel_change"])]
        for r in parts.get("images", ())
    ]  # fmt: skip
    steps = parts["substitution step"]
    figure = go.Figure(
        _lines(steps, "step", "recovered_over_mean", "dictionary", y_title=", over mean")
        + _lines(steps, "step", "recovered_over_zero", "dictionary", y_title=", over zero", dash="dot")
    )
    figure.update_layout(title="Loss recovered", xaxis_title="step (0 = most noise)", yaxis_title="share")
    return html.section(
        "In place of the site's rows",
        html.data_table(("dictionary", "loss recovered over mean", "over zero"), table),
        figures(figure, "share of the loss recovered by each dictionary over denoising steps"),
        html.data_table(("dictionary", "in place", "accuracy kept", "pixel change"), images),
    )


def _heat(values: Sequence[Sequence[Any]], x: Sequence[Any], y: Sequence[str], title: str, limits: Any) -> Any:
    import plotly.graph_objects as go

    low, high = limits if limits else (None, None)
    return go.Figure(
        go.Heatmap(
            z=values, x=[str(v) for v in x], y=list(y), colorscale="Viridis", zmin=low, zmax=high,
            colorbar={"title": title}, texttemplate="%{z:.2f}", hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip


def _interval(row: Row, key: str) -> str:
    value = _number(row[key])
    return value if row[key] is None else f"{value}\n{_number(row[f'{key}_low'])} to {_number(row[f'{key}_high'])}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def summary(rows: Sequence[Row]) -> str:
    """The main numbers as a text table."""
    from apps.progress import table

    body = []
    for r in (r for r in rows if r["part"] == "reconstruction"):
        own = [q for q in rows if q.get("dictionary") == r["dictionary"]]
        found = next((q for q in own if q["part"] == "recovery" and q["units"] == "features"), None)
        place = next((q for q in own if q["part"] == "substitution"), None)
        body.append(
            [r["dictionary"], _number(r["explained_variance"]), _number(r["explained_variance_about_zero"]),
             f"{r['l0']:.1f}", str(r["dead"]), str(r["dense"]),
             "-" if found is None else f"{found['recovered']:.0f} of {found['concepts']}",
             "-" if place is None else _number(place["recovered_over_mean"])]
        )  # fmt: skip
    return table(["", "EV", "EV about zero", "L0", "dead", "dense", "AUC > 0.95", "loss recovered"], body)


def page_of(out: Path) -> Path:
    """Where the page of a JSON file goes."""
    return out.with_name(re.sub(r"\.json$", "", out.name) + ".html")
