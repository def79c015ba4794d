"""The dictionaries that one command line asks for: every combination of the values given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.errors import InvalidOption
from apps.runs import run_of, site_name

if TYPE_CHECKING:
    from activations_store import ActivationStore
    from sae import TrainConfig

EXPANSION, K = 8, 16
"""Where the command line says nothing."""

_SHORT = {"architecture": "", "d_sae": "d", "expansion": "x", "k": "k", "lr": "lr", "seed": "seed", "steps": "steps"}


def grid(
    store: ActivationStore, options: argparse.Namespace, sites: Sequence[str], common: dict[str, Any]
) -> tuple[list[TrainConfig], list[Path]]:
    """Configurations and the folder of each.

    One dictionary goes into ``--out``, or RUN/sae/SITE; several into folders named by what differs, such as
    ``--out``/k32-seed1 or RUN/sae/SITE-k32-seed1. Dictionaries of several seeds differ in their initial weights; the
    first seed decides the rows, so that they share one read.

    Args:
        store: what they are trained on.
        options: of the command; lists for everything that may vary.
        sites: full names.
        common: fields of `TrainConfig` that are the same for all.
    """
    from sae import TrainConfig

    seeds: Sequence[int] = options.seed or [0]
    size = "expansion" if options.d_sae is None else "d_sae"
    values: dict[str, Sequence[Any]] = {
        "site": sites,
        "steps": options.steps or [None],
        "architecture": options.architecture or ["topk"],
        size: getattr(options, size) or [EXPANSION],
        "k": options.k or [K],
        "lr": options.lr or [None],
        "seed": seeds,
    }
    for name, given in values.items():
        if len(set(given)) < len(given):
            raise InvalidOption(f"train: --{name.replace('_', '-')} names a value twice.")
    owner, _ = run_of(store.path)
    configs, folders = [], []
    for chosen in product(*values.values()):
        one = dict(zip(values, chosen, strict=True))
        rows = {"row_seed": seeds[0]} if one["seed"] != seeds[0] else {}
        configs.append(TrainConfig(**one, **rows, **common))
        parts = [short + _text(one[name]) for name, short in _SHORT.items() if len(values.get(name, ())) > 1]
        site = site_name(one["site"])
        if options.out is None:
            folders.append(owner.new("sae", "-".join([site, *parts])))
        else:
            folders.append(options.out.joinpath("-".join([site, *parts] if len(sites) > 1 else parts)))
    return configs, folders


def _text(value: Any) -> str:
    """A value as a part of a folder's name; steps as ranges."""
    if not isinstance(value, tuple):
        return f"{value:g}" if isinstance(value, float) else str(value)
    runs: list[list[int]] = []
    for step in value:
        if runs and runs[-1][-1] == step - 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
