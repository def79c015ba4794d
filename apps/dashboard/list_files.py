"""The file of a run's lists, and a list as files for others.

``lists.json`` in the run's folder is replaced whole under a lock, and checked when it is read:

    {"format": 1, "lists": [{"name", "items": [{"dictionary", "feature", "bundle", "note", "scores"}], "controls"}]}

``scores`` is rater -> {"score": 1 to 5, "says": text}; ``controls`` is rater -> number of the control -> the same.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apps.dashboard.feature_lists import (
    MOST_ITEMS,
    MOST_LISTS,
    MOST_NAME,
    MOST_RATERS,
    MOST_TEXT,
    SCORES,
    FeatureList,
    Item,
    Lists,
    Score,
)
from apps.errors import InvalidFile
from apps.measurement import read_json, write_json
from apps.runs import Run

FORMAT = 1
FILE, LOCK = "lists.json", "lists.lock"
_WAIT = 10.0  # seconds for another session to finish its change


def file_of(run: Run) -> Path:
    """Where a run's lists are kept."""
    return run.folder / FILE


def read(path: Path) -> Lists:
    """The lists of a file by name; none if there is no file.

    Raises:
        InvalidFile: it is not such a file, or some value in it is out of range.
    """
    if not path.is_file():
        return {}
    record = read_json(path)
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}; this version reads {FORMAT}")
        found = [_list(entry) for entry in _few(record["lists"], MOST_LISTS, "lists")]
        if len({one.name for one in found}) != len(found):
            raise ValueError("two lists of one name")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidFile(
            f"lists {str(path)!r} cannot be read: {type(error).__name__}: {error}. Mend or move the file."
        ) from error
    return {one.name: one for one in found}


def change(path: Path, edit: Callable[[Lists], Lists]) -> Lists:
    """Reads, edits and replaces the file, one session at a time; returns what it holds now.

    Raises:
        InvalidFile: the file is damaged; it stays as it is.
        InvalidOption: the edit was refused.
        OSError: the folder cannot be written, or another session holds it for long.
    """
    from filelock import FileLock

    with FileLock(path.with_name(LOCK), timeout=_WAIT):
        lists = edit(read(path))
        write_json(path, {"format": FORMAT, "lists": [asdict(one) for one in lists.values()]})
    return lists


def as_json(one: FeatureList) -> bytes:
    """A list as a JSON file: the same record as in ``lists.json``."""
    return (json.dumps({"format": FORMAT, "lists": [asdict(one)]}, indent=1, ensure_ascii=False) + "\n").encode()


def as_csv(one: FeatureList) -> bytes:
    """A list as a table, a row a feature, with two columns a rater; a spreadsheet takes no cell of it for a formula."""
    text = io.StringIO(newline="")
    raters = [name for name in one.raters if any(name in item.scores for item in one.items)]
    names = [f"{what} ({name})" for name in raters for what in ("score", "says")]
    table = csv.writer(text)
    table.writerow([_cell(n) for n in ("place", "dictionary", "feature", "bundle", "note", "mean score", *names)])
    for place, item in enumerate(one.items, 1):
        mean = "" if item.mean is None else f"{item.mean:.4g}"
        given = [item.scores.get(name) for name in raters]
        each = [part for s in given for part in (("", "") if s is None else (str(s.score), s.says))]
        row = (str(place), item.dictionary, str(item.feature), item.bundle, item.note, mean, *each)
        table.writerow([_cell(cell) for cell in row])
    return text.getvalue().encode("utf-8-sig")  # the mark tells spreadsheets that it is UTF-8


def _cell(text: str) -> str:
    """Text that a spreadsheet would run is marked as text."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _list(entry: Mapping[str, Any]) -> FeatureList:
    controls = {
        _text(rater, MOST_NAME): {int(number): _score(score) for number, score in by.items()}
        for rater, by in _few(entry["controls"], MOST_RATERS, "raters").items()
    }
    items = tuple(
        Item(
            _text(item["dictionary"], 200),
            _count(item["feature"]),
            _text(item["bundle"], 64),
            _text(item["note"], MOST_TEXT),
            {_text(r, MOST_NAME): _score(s) for r, s in _few(item["scores"], MOST_RATERS, "raters").items()},
        )
        for item in _few(entry["items"], MOST_ITEMS, "items")
    )
    return FeatureList(_text(entry["name"], MOST_NAME), items, controls)


def _score(value: Mapping[str, Any]) -> Score:
    if value["score"] not in SCORES:
        raise ValueError(f"score {value['score']!r}")
    return Score(int(value["score"]), _text(value["says"], MOST_TEXT))


def _text(value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{str(value)[:40]!r} is no text of {most} characters at most")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no feature")
    return value


def _few(value: Any, most: int, what: str) -> Any:
    if not isinstance(value, list | dict) or len(value) > most:
        raise ValueError(f"{what} are not there, or more than {most}")
    return value
