"""Read prompts, seeds and labels from a text, CSV or JSON-lines file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from probe.errors import EmptyPrompts, PromptFileError, PromptFileNotFound

T = TypeVar("T")
_FORMATS = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True)
class PromptSet:
    """Samples to generate.

    Attributes:
        prompts: one for each sample.
        seeds: one for each sample, or None if the file has no seed column.
        labels: for each labelled factor, one value a sample.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_prompts(path: str | Path) -> PromptSet:
    """Read a prompt file.

    ``.txt``: one prompt a line; empty lines and lines that begin with ``#`` are skipped. ``.csv`` with a header and
    ``.jsonl`` with one object a line: ``prompt`` is required, ``seed`` optional, every other column is a label, with or
    without the prefix ``label_``; null is no label.

    Raises:
        PromptFileNotFound: no such file.
        EmptyPrompts: there is no prompt in it.
        PromptFileError: another ending, not UTF-8, or a malformed line, which is named.
    """
    path = Path(path)
    if not path.is_file():
        raise PromptFileNotFound(f"prompts: there is no file {str(path)!r}.")
    if path.suffix not in _FORMATS:
        raise PromptFileError(f"prompts: {path.name} ends in {path.suffix!r}; expected {', '.join(_FORMATS)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(
            f"prompts: {path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    if path.suffix == ".txt":
        lines = tuple(line.strip() for line in text.split("\n"))
        prompts = tuple(line for line in lines if line and not line.startswith("#"))
        return PromptSet(_not_empty(prompts, path))
    rows = list(_csv_rows(text, path) if path.suffix == ".csv" else _jsonl_rows(text, path))
    return _from_rows(rows, path)


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise PromptFileError(
                    f"prompts: {path.name} line {reader.line_num} does not have the {len(reader.fieldnames or ())} "
                    "fields of the header; quote fields that contain commas."
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise PromptFileError(f"prompts: {path.name} line {reader.line_num} is not CSV: {error}.") from error


def _jsonl_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: text may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PromptFileError(f"prompts: {path.name} line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise PromptFileError(f"prompts: {path.name} line {number}: expected an object, got {type(row).__name__}.")
        yield number, row


def _from_rows(rows: list[tuple[int, dict[str, Any]]], path: Path) -> PromptSet:
    _not_empty(tuple(rows), path)
    columns = list(rows[0][1])
    if "prompt" not in columns:
        raise PromptFileError(f"prompts: {path.name} has no column 'prompt'; found {', '.join(columns) or 'none'}.")
    prompts, seeds = [], []
    labels: dict[str, list[str]] = {c: [] for c in columns if c not in ("prompt", "seed")}
    for number, row in rows:
        if set(row) != set(columns):
            raise PromptFileError(
                f"prompts: {path.name} line {number} has the fields {', '.join(row)}; expected {', '.join(columns)} as "
                "in the first row."
            )
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            raise PromptFileError(f"prompts: {path.name} line {number}: the prompt is {prompt!r}, expected text.")
        prompts.append(prompt.strip())
        if "seed" in columns:
            seeds.append(_seed(row["seed"], number, path))
        for column, values in labels.items():
            values.append("" if row[column] is None else str(row[column]).strip())
    named = {column.removeprefix("label_"): tuple(values) for column, values in labels.items()}
    if len(named) < len(labels):
        raise PromptFileError(f"prompts: {path.name} gives a label twice: {', '.join(sorted(labels))}.")
    return PromptSet(tuple(prompts), tuple(seeds) if "seed" in columns else None, named)


def _seed(value: Any, number: int, path: Path) -> int:
    text = str(value).strip()
    if isinstance(value, bool | float) or not text.isdecimal():
        raise PromptFileError(f"prompts: {path.name} line {number}: seed {value!r} is not a whole number from 0.")
    return int(text)


def _not_empty(rows: tuple[T, ...], path: Path) -> tuple[T, ...]:
    if not rows:
        raise EmptyPrompts(f"prompts: {path.name} holds no prompts; write one a line.")
    return rows
