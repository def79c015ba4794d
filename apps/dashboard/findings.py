"""What the commands left in a folder: measurement files, and the sheets of pictures beside them. No Streamlit.

A finding is a JSON file in the folder or one folder below that is a measurement (``apps.measurement``), or that has a
PNG of the same name beside it (``denoscope lens``). Folders that hold the parts of a run are not searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.errors import InvalidFile
from apps.measurement import read_json
from apps.runs import Run

_KEYS = {"name", "rows", "ratios"}
_PARTS = {"store", "sae", "bundle", "recipes", "unlearn", "stages", "directions", "tables"}
_MOST_BYTES = 32_000_000  # a larger JSON file is no table for people

TITLES = {
    "demo.canvas": "The demo",
    "unlearn.canvas": "Unlearning",
    "steer": "Steering",
    "audit.canvas": "Audit of an unlearned model",
    "sae.eval": "What the dictionaries know",
    "sae.compare": "Features that two dictionaries share",
    "info.mi": "Mutual information of words and images",
    "info.cmi": "Information of a word, given the rest of its caption",
    "info.pid": "What two words tell alone, in common, and only together",
    "info.nll": "Negative log-likelihood",
    "info.classify": "Labels by denoising error",
    "info.site": "What the activations of a site tell",
    "bench.canvas": "Does the embedded model draw what it is asked for?",
    "bench.sae": "What dictionaries of canvas know",
    "bench.unlearn": "Unlearning methods side by side",
    "bench.unlearn_many": "Several concepts unlearned at once",
    "bench.directions": "Direction finders side by side",
    "bench.information": "What words tell about images",
    "bench.lenses": "How well lenses see what is there",
}
"""Name in a measurement file -> what it answers."""

_NATS = "In nats (1 nat is 1.44 bits), from how much less the denoiser errs when it is told. "
ABOUT = {
    "demo.canvas": "What the demo measured: its dictionaries, the feature it steered, and the time of each stage.",
    "audit.canvas": "Whether an unlearned concept is still inside: linear probes by site and step, and its word as a "
    "classifier of its pictures, each beside the unedited model and a null.",
    "sae.eval": "Reconstruction, and concepts found by the features beside PCA, random directions and neurons. AUC: "
    "that a sample with the concept scores above one without, on samples that did not choose it; 0.5 is chance.",
    "info.mi": _NATS + "The null is the caption or word of another image: what any words would tell.",
    "info.cmi": _NATS + "A word given the rest of its caption; the null is another image's word in its place.",
    "info.pid": _NATS + "Redundant: either word tells it. Unique: only that one. Synergistic: only both together.",
    "info.nll": "Negative log-likelihood of the images in nats, with and without their captions; lower is likelier.",
    "info.classify": "Each image gets the label under which the denoiser errs least; the null is chance.",
    "info.site": "What a site's activations tell about labels, in nats; the null is the same with labels dealt anew.",
    "bench.canvas": "Prompts are drawn and read back by the judge. Renders and reconstructions: the judge's ceilings.",
    "bench.directions": "AUC: how well a vector tells the concept in unseen rows; 0.5 is chance. Gain: how far adding "
    "it raises the judge's probability of the concept. Found, shuffled: share of concepts found with true and with "
    "shuffled labels.",
    "bench.information": "Maps of a word against the true mask (IoU, AUC), labels read off the errors, words that say "
    "the same, and words left out. The nulls and 'everywhere' are the numbers to beat.",
    "bench.lenses": "Each lens where the truth is known, beside chance and beside what needs no model.",
    "bench.unlearn_many": "UA: forgotten; IRA, CRA: kept, in the same factor and in the other; by number of concepts.",
}
"""Name in a measurement file -> how its numbers are read."""


@dataclass(frozen=True)
class Finding:
    """A file of results.

    Attributes:
        label: its path below the folder that was searched, as in a link.
        path: the file.
        record: its content.
        picture: the PNG beside it, or None.
    """

    label: str
    path: Path
    record: Mapping[str, Any]
    picture: Path | None

    @property
    def kind(self) -> str:
        """Name of the measurement; empty for a lens, which has numbers of its own form."""
        return str(self.record["name"]) if self.record.keys() >= _KEYS else ""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the measurement; none for a lens."""
        return self.record["rows"] if self.kind else ()

    @property
    def title(self) -> str:
        """What it answers."""
        return TITLES.get(self.kind, self.kind or "Lens")


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(label, JSON file) in a folder and one folder below, in order; parts of a run and other runs are left out."""
    if not folder.is_dir():
        return
    below = [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir() and child.name not in _PARTS and not child.name.startswith(".") and not Run(child).exists()
    ]
    for place in (folder, *below):
        for path in sorted(place.glob("*.json")):
            if path.is_file() and path.stat().st_size <= _MOST_BYTES:
                yield path.relative_to(folder).as_posix(), path


def picture_of(path: Path) -> Path | None:
    """The PNG that belongs to a JSON file: of the same name, or the sheet of a sweep."""
    names = [path.with_suffix(".png"), *([path.with_name("grid.png")] if path.name == "steer.json" else [])]
    return next((name for name in names if name.is_file()), None)


def read(label: str, path: Path) -> Finding | None:
    """The finding in a file; None if it is some other JSON file."""
    try:
        record = read_json(path)
    except InvalidFile:  # not ours, or being written: it is simply not listed
        return None
    picture = picture_of(path)
    measured = record.keys() >= _KEYS and isinstance(record["rows"], list) and isinstance(record["ratios"], dict)
    return Finding(label, path, record, picture) if measured or picture is not None else None


def holds_any(folder: Path) -> bool:
    """Whether a folder has something to show although it is no run."""
    return any(read(label, path) is not None for label, path in files(folder))
