"""What the Inspect page shows, from arrays: its subject, tables, and the same as Python and on the command line.

No Streamlit.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.dashboard import browse
from apps.dashboard.timeaxis import TimeAxis
from apps.inspecting import Codes, Corpus, Measures, Region, measure, ranked

if TYPE_CHECKING:
    import pandas as pd

    from sae import FeatureBundle

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


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows of a subject, all of it decided.

    Attributes:
        bundle: of the dictionary.
        frame: its feature table, one row a feature.
        subject: the image.
        axis: positions of the bundle's steps.
        codes: of the subject at ``branch``.
        region: the selected cells.
        step: index of the step.
        branch: guidance branch.
        sort: one of ``SORTS``.
        dense: whether dense features are shown.
        asked: the feature whose map is shown; None for the first of the table.
        query: added to the address of a feature's page.
    """

    bundle: FeatureBundle
    frame: pd.DataFrame
    subject: Subject
    axis: TimeAxis
    codes: Codes
    region: Region
    step: int
    branch: str
    sort: str
    dense: bool
    asked: int | None
    query: str

    @cached_property
    def found(self) -> Measures:
        """Every feature in the selection."""
        return measure(self.codes, self.region.tokens, self.step, Corpus.of(self.bundle))

    @cached_property
    def keep(self) -> np.ndarray:
        """(d_sae,) bool: features that are not hidden."""
        dense = self.frame["dense"].to_numpy()
        return np.ones_like(dense) if self.dense else ~dense

    @cached_property
    def top(self) -> np.ndarray:
        """Features that are on in the selection and not hidden, in the chosen order."""
        return ranked(self.found, self.sort, self.keep)

    @property
    def n_hidden(self) -> int:
        """Features that are on in the selection and hidden."""
        return int(np.count_nonzero((self.found.mean > 0) & ~self.keep))

    @property
    def feature(self) -> int | None:
        """Whose map is shown; None where nothing is on."""
        if self.asked is not None:
            return self.asked
        return int(self.top[0]) if len(self.top) else None

    @cached_property
    def factors(self) -> list[str]:
        """Factors with at least two concepts."""
        return browse.labelled(self.bundle)

    @cached_property
    def told(self) -> pd.DataFrame:
        """``browse.best`` of the rows of the table."""
        return browse.best(self.frame.iloc[self.top[:N_ROWS]], self.factors)

    def pages(self, features: np.ndarray) -> list[str]:
        """Addresses of features' pages."""
        return [f"feature?f={feature}{self.query}" for feature in features]


def labels(told: pd.DataFrame) -> list[str]:
    """``factor concept`` of each row of ``browse.best``; empty without labels."""
    return [f"{factor} {name}" if name else "" for factor, name in zip(told["factor"], told["concept"], strict=True)]


def table(shown: Shown) -> pd.DataFrame:
    """The top features of the selection."""
    import pandas as pd

    top, found = shown.top[:N_ROWS], shown.found
    columns: dict[str, Any] = {"Feature": shown.pages(top)}
    if shown.factors:
        columns |= {"Label": labels(shown.told), "AUC": shown.told["auc"].to_numpy()}
    columns |= {
        "Activation": found.activation[top],
        "Share": 100 * found.share[top],
        "Surprise": found.surprise[top],
        "First on": [shown.axis.short(int(first)) for first in found.first[top]],
    }
    if shown.dense:
        columns["State"] = ["dense" if dense else "" for dense in shown.frame["dense"].iloc[top]]
    return pd.DataFrame(columns)


def compared_table(shown: Shown, features: np.ndarray, **means: np.ndarray) -> pd.DataFrame:
    """Features of one part of a comparison with their mean activation in A, B or both."""
    import pandas as pd

    found = features[:N_ROWS]
    columns: dict[str, Any] = {"Feature": shown.pages(found)}
    if shown.factors:
        columns["Label"] = labels(browse.best(shown.frame.iloc[found], shown.factors))
    return pd.DataFrame(columns | {name: values[found] for name, values in means.items()})


def raster(shown: Shown) -> tuple[list[str], np.ndarray]:
    """Names and (n, n_steps) mean activations of the first features of the table."""
    top = shown.top[:N_RASTER]
    names = [f"{feature} {name}".strip() for feature, name in zip(top, labels(shown.told), strict=False)]
    return names, shown.found.by_step[:, top].T


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


def as_python(run: Path, name: str, shown: Shown) -> str:
    """A script that prints the table of a recorded sample."""
    keep = "found.mean >= 0" if shown.dense else "~bundle.table['dense'].to_numpy()"
    return f"""from activations_store import ActivationStore
from apps.inspecting import Corpus, Region, measure, ranked, recorded_codes
from apps.runs import Run
from sae import FeatureBundle, open_sae

run = Run.open({str(run)!r})
store, bundle = ActivationStore.open(run.store), FeatureBundle.open(run.bundle({name!r}))
sae = open_sae(run.sae({name!r}))
codes = recorded_codes(store, sae, {shown.subject.sample}, steps=bundle.steps, branch={shown.branch!r})
cells = Region.parse({str(shown.region)!r}, codes.grid).tokens
found = measure(codes, cells, bundle.steps.index({shown.bundle.steps[shown.step]}), Corpus.of(bundle))
for feature in ranked(found, {shown.sort!r}, {keep})[:{N_ROWS}]:
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
