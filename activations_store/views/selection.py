"""What a caller may give to choose samples, steps, branches or tokens, and its resolution to positions."""

from collections.abc import Sequence

import numpy as np

from activations_store.errors import InvalidSelection, explain

Selection = int | slice | Sequence[int] | np.ndarray | None
BranchSelection = str | int | Sequence[str] | Sequence[int] | None


def resolve(selection: Selection, n: int, what: str) -> np.ndarray:
    """Positions chosen along one dimension.

    Args:
        selection: None (all), an int or slice, integers (negative ones count from the end), or a boolean
            mask of length n.
        n: length of the dimension.
        what: its name, for messages.

    Returns:
        (m,) int64 within 0 .. n-1, in the order given, m >= 1.

    Raises:
        InvalidSelection: out of range, empty, or of another type.
    """
    if selection is None:
        return np.arange(n)
    if isinstance(selection, slice):
        chosen = np.arange(n)[selection]
    else:
        given = np.asarray(selection)
        if given.dtype == bool and given.shape == (n,):
            chosen = np.flatnonzero(given)
        elif given.dtype.kind in "iu" and given.ndim <= 1:
            chosen = np.atleast_1d(given).astype(np.int64)
            outside = chosen[(chosen < -n) | (chosen >= n)]
            if len(outside):
                raise InvalidSelection(
                    explain(
                        f"No {what} {outside[0]}",
                        expected=f"0 to {n - 1} ({n} of them, negative from the end)",
                    )
                )
            chosen = np.where(chosen < 0, chosen + n, chosen)
        elif given.size == 0:
            chosen = np.empty(0, np.int64)
        else:
            raise InvalidSelection(
                explain(
                    f"Cannot choose a {what} by this",
                    found=f"{type(selection).__name__} of {given.dtype}, shape {given.shape}",
                    expected=f"None, an int, a slice, a list of ints, or {n} booleans",
                )
            )
    if not len(chosen):
        raise InvalidSelection(explain(f"The selection of {what}s is empty", expected=f"at least one of {n}"))
    return chosen


def resolve_branches(selection: BranchSelection, branches: tuple[str, ...]) -> np.ndarray:
    """(n,) positions of branches given by name or number; raises `InvalidSelection` for one that there is not."""
    if selection is None:
        return np.arange(len(branches))
    items = [selection] if isinstance(selection, str | int) else list(selection)
    positions = []
    for item in items:
        if isinstance(item, str):
            if item not in branches:
                raise InvalidSelection(explain(f"No branch {item!r}", expected="one of " + ", ".join(branches)))
            positions.append(branches.index(item))
        else:
            positions.append(item)
    return resolve(positions, len(branches), "branch")
