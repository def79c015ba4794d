"""What the Inspect page shows, from arrays: its subject, tables, and the same as Python and on the command line.

No Streamlit.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.dashboard import browse
from apps.dashboard.timeaxis import TimeAxis
from apps.inspecting import Codes, Measures

if TYPE_CHECKING:
    import pandas as pd

TOP = "top"
"""In a link: the first feature of the table."""
N_ROWS, N_RASTER = 50, 30
_LONGEST = 500  # characters of a prompt in a link


@dataclass(frozen=True, eq=False)
class Subject:
    """One image that is inspected.

    Attributes:
        name: ``sample 12`` or ``own prompt``.
        prompt: its text.
        seed: of its noise.
        about: labels, or guidance.
        branches: guidance branches that can be looked at.
        codes: its code by branch; may read and encode.
        picture: the image to show at a step of the store, None if there is none, and what it is.
        sample: number in the store, or None.
        guidance: guidance scale, or None if unknown.
    """

    name: str
    prompt: str
    seed: int
    about: str
    branches: tuple[str, ...]
    codes: Callable[[str], Codes]
    picture: Callable[[int], tuple[np.ndarray | None, str]]
    sample: int | None
    guidance: float | None


def table(
    features: np.ndarray, found: Measures, frame: pd.DataFrame, factors: Sequence[str], axis: TimeAxis, query: str
) -> pd.DataFrame:
    """The top features of a selection.

    Args:
        features: which, in order.
        found: their measures.
        frame: the feature table, one row a feature.
        factors: labelled factors.
        axis: for the step at which a feature first is on.
        query: added to the address of a feature's page.
    """
    import pandas as pd

    rows = frame.iloc[features]
    told = browse.best(rows, factors)
    return pd.DataFrame(
        {
            "Feature": [f"feature?f={feature}{query}" for feature in features],
            "Label": labels(told),
            "AUC": told["auc"].to_numpy(),
            "Activation": found.activation[features],
            "Share": 100 * found.share[features],
            "Surprise": found.surprise[features],
            "First on": [axis.short(int(first)) for first in found.first[features]],
            "State": ["dense" if dense else "" for dense in rows["dense"]],
        }
    )


def labels(told: pd.DataFrame) -> list[str]:
    """``factor concept`` of each row of ``browse.best``; empty without labels."""
    return [
        f"{factor} {concept}" if concept else ""
        for factor, concept in zip(told["factor"], told["concept"], strict=True)
    ]


def compared_table(
    features: np.ndarray, frame: pd.DataFrame, factors: Sequence[str], query: str, **means: np.ndarray
) -> pd.DataFrame:
    """Features of one part of a comparison with their mean activation in A, B or both."""
    import pandas as pd

    found = features[:N_ROWS]
    columns: dict[str, Any] = {
        "Feature": [f"feature?f={feature}{query}" for feature in found],
        "Label": labels(browse.best(frame.iloc[found], factors)),
    }
    return pd.DataFrame(columns | {name: values[found] for name, values in means.items()})


def raster_names(features: np.ndarray, frame: pd.DataFrame, factors: Sequence[str]) -> list[str]:
    """A row's name: the feature and what it tells best."""
    told = labels(browse.best(frame.iloc[features], factors))
    return [f"{feature} {name}".strip() for feature, name in zip(features, told, strict=True)]


def feature_number(text: str, d_sae: int) -> int | None:
    """The feature that a link asks for; None for the first of the table.

    Raises:
        ValueError: it is neither.
    """
    if text == TOP:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 12 and int(text) < d_sae:
        return int(text)
    raise ValueError(f"this run has features 0 to {d_sae - 1}, or {TOP}")


def prompt_text(text: str) -> str:
    """A prompt from a link.

    Raises:
        ValueError: it is empty, too long, or holds control characters.
    """
    if not text.strip() or len(text) > _LONGEST or not text.isprintable():
        raise ValueError(f"a prompt is one line of 1 to {_LONGEST} characters")
    return text


def guidance_scale(text: str) -> float:
    """A guidance scale from a link.

    Raises:
        ValueError: it is no number from 0 to 100.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 100.0:
        raise ValueError("guidance is a number from 0 to 100")
    return value


def as_python(
    run: Path, name: str, subject: Subject, *, step: int, branch: str, cells: str, sort: str, dense: bool
) -> str:
    """A script that prints the table of a recorded sample."""
    return f"""from activations_store import ActivationStore
from apps.inspecting import Corpus, Region, measure, ranked, recorded_codes
from apps.runs import Run
from sae import FeatureBundle, open_sae

run = Run.open({str(run)!r})
store, bundle = ActivationStore.open(run.store), FeatureBundle.open(run.bundle({name!r}))
sae = open_sae(run.sae({name!r}))
codes = recorded_codes(store, sae, {subject.sample}, steps=bundle.steps, branch={branch!r})
cells = Region.parse({cells!r}, codes.grid).tokens
found = measure(codes, cells, bundle.steps.index({step}), Corpus.of(bundle))
keep = {"~bundle.table['dense'].to_numpy()" if not dense else "found.mean >= 0"}
for feature in ranked(found, {sort!r}, keep)[:{N_ROWS}]:
    print(feature, found.activation[feature], found.share[feature], found.surprise[feature])
"""


def as_command(run: Path, subject: Subject, *, model: str, steps: int | None, sae: Path, feature: int | None) -> str:
    """Commands that draw the image again, and push one feature while it is drawn."""
    prompt = shlex.quote(subject.prompt)
    lines = []
    if steps is not None:
        scale = "" if subject.guidance is None else f" --guidance {subject.guidance:g}"
        lines.append(
            f"denoscope generate --model {shlex.quote(model)} --prompt {prompt} --seeds {subject.seed} "
            f"--steps {steps}{scale} --out image.png"
        )
    if feature is not None:
        lines.append(
            f"denoscope steer --sae {shlex.quote(str(sae))} --feature {feature} --prompt {prompt} "
            f"--out {shlex.quote(str(run / f'steer-{feature}'))}"
        )
    return "\n".join(lines)
