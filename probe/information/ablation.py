"""What features, directions and attention heads carry: the changes that take them away, and the columns to compare.

    intact          the denoiser as it is
    away:a          without a                     information(table, "intact", given="away:a"): what a carries
    away:a+b        without a and b               carried_by_two(table, "a", "b"): alone, in common, only together

The changes are for ``Edited``. A change of several is one after the other, at one site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import torch

from probe.errors import InvalidRequest
from probe.information.columns import Column
from probe.information.edited import Change, Edited
from probe.information.mutual import Form
from probe.information.pid import Decomposition, pid
from probe.information.table import NodeTable
from probe.model.pipeline_eps import PipelineEps

INTACT = "intact"


class Coder(Protocol):
    """A dictionary: codes of rows, and rows of codes."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(n, d) rows to (n, features) codes."""
        ...

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(n, features) codes to (n, d) rows."""
        ...


def away(*names: str) -> str:
    """Name of the column without some of the parts."""
    return "away:" + "+".join(names)


def without_feature(dictionary: Coder, feature: int) -> Change:
    """The change that sets a feature's code to zero and keeps what the dictionary leaves unexplained."""

    @torch.no_grad()
    def change(rows: torch.Tensor) -> torch.Tensor:
        flat = rows.flatten(0, -2)
        z = dictionary.encode(flat)
        if not 0 <= feature < z.shape[1]:
            raise InvalidRequest(f"without_feature: feature {feature}; the dictionary has 0 to {z.shape[1] - 1}.")
        off = z.clone()
        off[:, feature] = 0.0
        return (flat + (dictionary.decode(off) - dictionary.decode(z)).to(flat)).reshape(rows.shape)

    return change


def without_head(head: int, n_heads: int) -> Change:
    """The change that silences a head, for the rows that enter an attention's output projection (``....to_out.0:in``):
    they are the heads' outputs side by side.
    """
    if not 0 <= head < n_heads:
        raise InvalidRequest(f"without_head: head {head} of {n_heads}; expected 0 to {n_heads - 1}.")

    def change(rows: torch.Tensor) -> torch.Tensor:
        if rows.shape[-1] % n_heads:
            raise InvalidRequest(
                f"without_head: rows of {rows.shape[-1]} numbers are not {n_heads} heads side by side."
            )
        parts = rows.unflatten(-1, (n_heads, -1)).clone()
        parts[..., head, :] = 0.0
        return parts.flatten(-2)

    return change


def ablation_columns(
    model: PipelineEps,
    conds: Sequence[Any] | None,
    site: str,
    changes: Mapping[str, Change],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Column]:
    """The denoiser intact, without each part, and without two.

    Args:
        model: the pipeline.
        conds: what is said about each image, to all columns alike.
        site: where the changes are made; port ``in`` or ``out``.
        changes: name of a part -> what takes it away; names are part of a table's record.
        pairs: two names each; all pairs if None.

    Raises:
        InvalidRequest: a pair of unknown names, or a site that ``Edited`` refuses.
    """
    both = list(combinations(changes, 2)) if pairs is None else list(pairs)
    if unknown := {n for p in both for n in p} - set(changes):
        raise InvalidRequest(f"ablation_columns: {', '.join(sorted(unknown))}; expected names of {', '.join(changes)}.")
    parts = [*((name,) for name in changes), *both]

    def column(names: tuple[str, ...]) -> Column:
        def change(rows: torch.Tensor) -> torch.Tensor:
            for name in names:
                rows = changes[name](rows)
            return rows

        return Column(away(*names), conds, Edited(model, site, change, away(*names)))

    return [Column(INTACT, conds), *(column(names) for names in parts)]


def carried_by_two(table: NodeTable, first: str, second: str, *, form: Form = "orthogonal") -> Decomposition:
    """What two parts carry alone, in common and only together, as for two words: to know a part is to have it in
    place. See ``pid``; MMI.
    """
    columns = (away(first, second), away(second), away(first), INTACT)
    return pid(table, first, second, columns=columns, form=form)
