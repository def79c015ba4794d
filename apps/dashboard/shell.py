"""What every page shares: which run is open, the side bar, and the sentences for a run that is not there or
not finished.

The run comes from the command line (``streamlit run Home.py -- RUN``) or the variable DENOSCOPE_RUN. It is
a run folder or a folder of runs. What a link names (run, dictionary) is only ever compared with the names
that a listing of that folder gives.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import streamlit as st

from apps.dashboard import information, links, readers
from apps.dashboard.address import Address, changed, widget
from apps.dashboard.findings import Finding, holds_any
from apps.dashboard.launch import RUN_VARIABLE
from apps.dashboard.timeaxis import UNITS, TimeAxis
from apps.runs import Run, find_runs

HOME_PAGE, FEATURE_PAGE, INSPECT_PAGE = "app_pages/home.py", "app_pages/feature.py", "app_pages/inspect.py"
UNLEARNING_PAGE, STEERING_PAGE = "app_pages/unlearning.py", "app_pages/steering.py"
DIRECTIONS_PAGE, MEASUREMENTS_PAGE = "app_pages/directions.py", "app_pages/measurements.py"
INFORMATION_PAGE, HEALTH_PAGE = "app_pages/information.py", "app_pages/health.py"
COMPARE_PAGE, LISTS_PAGE = "app_pages/compare.py", "app_pages/lists.py"
_OPEN = "open_run"


@dataclass(frozen=True)
class Opened:
    """The run that is open.

    Attributes:
        run: its folder.
        name: of the dictionary and its bundle, or None while there is neither.
        unit: how time is shown, a key of ``UNITS``.
    """

    run: Run
    name: str | None
    unit: str

    @property
    def sae(self) -> Path | None:
        """Folder of the dictionary."""
        return self.run.saes().get(self.name or "")

    @property
    def bundle(self) -> Path | None:
        """Folder of the feature bundle."""
        return self.run.bundles().get(self.name or "")


def run_argument() -> Path | None:
    """The run or folder of runs that the app was started with."""
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get(RUN_VARIABLE, "")
    return Path(given) if given else None


def open_run() -> None:
    """Finds the run, draws the side bar and keeps what is open; stops with a sentence if there is none."""
    place = run_argument()
    if place is None:
        _no_run("The dashboard was started without a run.", "denoscope app runs/demo")
    runs = {run.name: run for run in find_runs(place)}
    if not runs and holds_any(place):  # a folder of results alone, such as a benchmark's
        runs = {place.resolve().name: Run(place)}
    if not runs:
        state = "holds no run" if place.is_dir() else "does not exist"
        _no_run(f"{str(place)!r} {state}.", f"denoscope demo --out {shlex.quote(str(place))}")
    address = Address()
    with st.sidebar:
        name = next(iter(runs))
        if len(runs) > 1:
            name = _select(address, links.RUN, "Run", "run", sorted(runs))
        else:
            st.text(name, help="The run that is open.")
        run = runs[name]
        names = sorted(run.saes() | run.bundles())
        chosen = names[0] if names else None
        if len(names) > 1:
            chosen = _select(address, links.BUNDLE, "Dictionary", "dictionary", names)
        unit = address.one_of(links.UNIT, what="time unit", choices=UNITS, default="step")
        st.segmented_control(
            "Time axis",
            list(UNITS),
            format_func=lambda key: {"step": "step", "t": "t", "logsnr": "log-SNR"}[key],
            key=widget(links.UNIT),
            on_change=changed,
            args=(links.UNIT,),
            required=True,
            help="How denoising time is shown on every page. A step is a position in sampling order, 0 = most noise; "
            "log-SNR compares models.",
        )
    st.session_state[_OPEN] = Opened(run, chosen, unit)
    address.save()
    tell(address)


def opened() -> Opened:
    """What ``open_run`` found."""
    return st.session_state[_OPEN]


def time_axis(steps: tuple[int, ...], timesteps: tuple[float, ...], log_snr: tuple[float, ...]) -> TimeAxis:
    """The time axis in the reader's unit."""
    return TimeAxis(steps, timesteps, log_snr, opened().unit)


def tell(address: Address) -> None:
    """Says what a link asked for in vain."""
    for problem in address.problems:
        st.warning(problem_text(problem), icon=":material/link_off:")


def problem_text(text: str) -> str:
    """A sentence that may repeat foreign text, with Markdown's own characters made harmless."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|~$:" else c for c in text)


def found() -> list[Finding]:
    """Results in the run that is open, and in the folder of runs that the app was started with."""
    run, place = opened().run.folder, run_argument()
    both = readers.found(run)
    if place is not None and place.resolve() != run.resolve():
        both += readers.found(place)
    return both


def page_of(finding: Finding) -> tuple[str, str]:
    """The page that shows a finding, and the address key that names it there."""
    if finding.kind == "steer":
        return STEERING_PAGE, links.SWEEP
    if finding.kind in ("unlearn.canvas", "bench.unlearn"):
        return UNLEARNING_PAGE, links.UNLEARNED
    if finding.kind == information.SITE or finding.kind in information.WORDS:
        return INFORMATION_PAGE, links.INFO
    return MEASUREMENTS_PAGE, links.RESULT


def choose(key: str, label: str, what: str, listed: Sequence[Finding]) -> Finding:
    """The finding that a link names, with a box to choose another where there are several; the address follows."""
    address = Address()
    by_label = {finding.label: finding for finding in listed}
    name = address.one_of(key, what=what, choices=by_label, default=next(iter(by_label)))
    if len(by_label) > 1:
        st.selectbox(
            label,
            list(by_label),
            format_func=lambda name: f"{by_label[name].title} ({name})",
            key=widget(key),
            on_change=changed,
            args=(key,),
        )
    address.save()
    tell(address)
    return by_label[name]


def made_from(finding: Finding) -> list[str]:
    """Where a measurement was made, with what, for the foot of a page."""
    if not finding.kind:
        return [finding.label]
    machine, git = finding.record.get("machine") or {}, finding.record.get("git") or {}
    versions = finding.record.get("versions") or {}
    return [
        finding.label,
        f"{machine.get('processor', 'unknown processor')}, {machine.get('cores', '?')} cores",
        f"model on {finding.record.get('device', '?')}",
        ", ".join(f"{name} {version}" for name, version in versions.items() if name != "python"),
        f"commit {str(git['commit'])[:8]}" if git.get("commit") else "",
    ]


def next_step(run: Run, name: str | None) -> tuple[str, str] | None:
    """(sentence, command) of what is missing before features can be browsed; None if nothing is."""
    place = shlex.quote(str(run.folder))
    store = readers.collected(run)
    site = store.sites[0][0] if store and store.sites else "SITE"
    if name in run.bundles() or not run.exists():
        return None
    if name in run.saes():
        return "There is a dictionary, but its feature bundle has not been built.", f"denoscope features {place}"
    if store is None:
        return "Nothing has been collected.", f"denoscope collect --model canvas --sites mid_block --out {place}"
    if not store.complete:
        return (
            f"The collection is unfinished: {store.n_committed:,} of {store.n_samples:,} samples are stored. "
            "The same command goes on where it stopped.",
            f"denoscope collect --model {shlex.quote(str(store.plan.get('model', 'canvas')))} … --out {place}",
        )
    return (
        "Activations are collected; no dictionary has been trained on them.",
        f"denoscope train {shlex.quote(str(run.store))} --site {shlex.quote(site)}",
    )


def show_next_step(sentence: str, command: str) -> None:
    """The box that an unfinished run shows."""
    with st.container(border=True):
        st.markdown(f"**Next step.** {problem_text(sentence)} Run this, then reload the page:")
        st.code(command, language="bash")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns the error of a damaged or missing file into a sentence on the page; the rest of the page goes on.

    Only errors that reading raises on purpose are caught; others go to Streamlit's error page.
    """
    try:
        yield
    except (OSError, ValueError, LookupError) as error:
        with st.container(border=True):
            st.markdown(f":material/error: **{what} cannot be read.**")
            st.code(" ".join(str(error).split()), language=None, wrap_lines=True)


def provenance(*parts: str) -> None:
    """The line at the foot of a page that says what its numbers were made from."""
    st.divider()
    st.caption(" · ".join(problem_text(part) for part in parts if part))


def _select(address: Address, key: str, label: str, what: str, names: list[str]) -> str:
    name = address.one_of(key, what=what, choices=names, default=names[0])
    st.selectbox(label, names, key=widget(key), on_change=changed, args=(key,))
    return name


def _no_run(sentence: str, command: str) -> NoReturn:
    st.title("No run is open")
    st.markdown(problem_text(sentence))
    st.markdown("Make one and open it; the demo takes a few minutes and needs no GPU:")
    st.code("denoscope demo --out runs/demo\ndenoscope app runs/demo", language="bash")
    if command not in ("denoscope app runs/demo", "denoscope demo --out runs/demo"):
        st.markdown("Or make it where you asked for it:")
        st.code(command, language="bash")
    st.stop()
