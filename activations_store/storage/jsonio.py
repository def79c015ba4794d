"""JSON with one spelling: canonical bytes, content hashes, and a parser that trusts nothing.

Canonical means UTF-8, sorted keys, no spaces, no NaN or infinity. Equal values have equal bytes, so a hash
of the bytes names the value, and a file that is not byte-equal to its own canonical form has been damaged or
edited.
"""

import hashlib
import json
from typing import Any, NoReturn

from activations_store.errors import InvalidMetadata, explain


def canonical(value: Any) -> bytes:
    """Canonical bytes of a JSON value; raises `InvalidMetadata` for what JSON cannot carry exactly."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMetadata(
            explain(
                "A value cannot be written as JSON",
                found=str(error)[:200],
                expected="dicts with string keys, lists, strings, finite numbers, booleans, None",
            )
        ) from error


def parse(data: str | bytes, where: str) -> Any:
    """Parse JSON.

    NaN, infinity, repeated keys, deep nesting and bad UTF-8 raise `InvalidMetadata` naming `where`.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InvalidMetadata(explain(f"{where} is not valid JSON", found=reason)) from error


def normalise(value: Any) -> Any:
    """`value` as JSON gives it back (tuples become lists), to compare with what was read from a file."""
    return json.loads(canonical(value))


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical bytes."""
    return hashlib.sha256(canonical(value)).hexdigest()


def differences(found: Any, expected: Any, path: str = "", limit: int = 6) -> list[str]:
    """Readable differences of two JSON values: "path: found ... expected ...", at most `limit` of them."""
    if isinstance(found, dict) and isinstance(expected, dict):
        lines: list[str] = []
        for key in sorted(set(found) | set(expected)):
            inner = f"{path}.{key}" if path else key
            if key not in found or key not in expected:
                lines.append(f"{inner} is only in the {'given' if key in expected else 'stored'} one")
            else:
                lines += differences(found[key], expected[key], inner, limit)
            if len(lines) >= limit:
                return lines[:limit]
        return lines
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        lines = []
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a != b:
                lines += differences(a, b, f"{path}[{i}]", limit)
            if len(lines) >= limit:
                return lines[:limit]
        return lines
    if type(found) is type(expected) and found == expected:
        return []
    return [f"{path or 'value'}: stored {_short(found)}, given {_short(expected)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result
