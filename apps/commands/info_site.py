"""``denoscope info site``: what the activations of a site tell about labels or prompts, step by step."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import Commands, add_command, add_model, load_model, positive, steps_range

if TYPE_CHECKING:
    import numpy as np

    from activations_store import ActivationStore

_EXAMPLE = """
denoscope info site runs/x --site mid_block up_blocks.1 --tell object style --out runs/x/site
denoscope info site runs/x --tell prompt --steps 0,5,9 --components 16 --out runs/x/prompts --dry-run
"""


def add_parser(parts: Commands) -> None:
    """Declare the question."""
    part = add_command(
        parts,
        "site",
        run,
        summary="what the activations of a site tell about labels or prompts",
        about="Mutual information of a site's rows with a label or with the prompt's embedding. A small denoiser of "
        "the labels, or of the rows, is trained for each step (MINDE, MMG), and measured on rows that it has not seen; "
        "a second, on labels dealt to other rows, is the null. The standard form is the estimate, mostly a low one; "
        "the orthogonal one beside it rises with overfitting and falls with too little training. Labels also get what "
        "a linear probe's accuracy says at least. The time is told first; a stopped run goes on when the same command "
        "is given again. OUT gets site.json.",
        example=_EXAMPLE,
        resumable=True,
    )
    part.add_argument("run_folder", metavar="RUN", type=Path, help="run folder with a store")
    part.add_argument("--site", nargs="+", metavar="SITE", help="one or more (default: the store's only one)")
    part.add_argument(
        "--tell", nargs="+", required=True, metavar="LABEL", help="labelled factors of the store, or prompt"
    )
    part.add_argument("--steps", type=steps_range, help="such as 0-4,9 (default: five, from first to last)")
    part.add_argument("--branch", help="of guidance (default: cond, or the store's only one)")
    part.add_argument("--view", choices=("mean", "map"), default="mean", help="a row: the map's mean, or the map")
    part.add_argument("--components", type=positive, default=8, help="principal components that are kept of each side")
    part.add_argument("--training-steps", type=positive, help="of each denoiser (default: 500 for labels, 2000)")
    part.add_argument("--seed", type=int, default=0, help="of split, weights, noise and null")
    add_model(part)
    part.add_argument("--out", type=Path, required=True, help="folder for the results")
    part.add_argument("--dry-run", action="store_true", help="tell the cost and stop")


def run(options: argparse.Namespace) -> None:
    """Check, estimate, train, show."""
    from activations_store import ActivationStore
    from apps.information.site import SiteRequest, site_row, site_table
    from apps.measurement import Measurement
    from apps.progress import Clock, bar
    from apps.runs import Run, find_site, store_folder
    from apps.stages import Stages
    from probe.directions.rows import SiteRows
    from probe.information.learned import LABELS, ROWS, training_seconds

    store = ActivationStore.open(store_folder(options.run_folder))
    sites = [find_site(store, name) for name in options.site or [None]]
    branch = options.branch or ("cond" if "cond" in store.spec.branches else store.spec.branches[0])
    n_steps = len(store.spec.timesteps)
    steps = options.steps or tuple(sorted({round(k * (n_steps - 1) / 4) for k in range(5)}))
    told = {name: told_values(options, store, name) for name in options.tell}
    places = [SiteRows(store, site, branch, options.view, steps) for site in sites]
    best = {name: LABELS if v.ndim == 1 else ROWS for name, v in told.items()}
    trainings = {
        name: replace(training, steps=options.training_steps or training.steps, seed=options.seed)
        for name, training in best.items()
    }
    d, each = min(options.components, max(rows.width for rows in places)), len(steps) * len(sites)
    seconds = each * sum(
        training_seconds(d, len(set(v.tolist())), trainings[name], labels=True)
        if v.ndim == 1
        else training_seconds(d, min(options.components, v.shape[1]), trainings[name])
        for name, v in told.items()
    )
    print(
        f"{len(places[0].samples)} samples of {', '.join(sites)}, {len(steps)} steps, told {', '.join(told)}: "
        f"{each * len(told)} trainings, nulls beside them, about {seconds:.0f} s"
    )
    if options.dry_run:
        return
    clock = Clock()
    stages = Stages(Run(options.out), print, each * len(told))
    found = []
    for rows, (name, values), step in product(places, told.items(), steps):
        request = SiteRequest(name, step, options.components, trainings[name], options.seed)
        with bar(f"{rows.site}, {name}, step {step}", "step") as progress:
            found.append(
                stages.do(
                    f"{rows.site.replace(':', '-')}-{name}-{step}",
                    f"{rows.site}, {name} at step {step}",
                    {"rows": rows.record(), "model": store.fingerprint} | request.record(),
                    partial(site_row, rows, values, request, progress),
                )
            )
    about = {"rows": [rows.record() for rows in places], "components": options.components}
    about |= {"training": {name: training.steps for name, training in trainings.items()}, "seed": options.seed}
    Measurement("info.site", found, {}, config=about).write(options.out / "site.json")
    print(site_table(found))
    print(f"\n{options.out / 'site.json'} ({clock})")


def told_values(options: argparse.Namespace, store: ActivationStore, name: str) -> np.ndarray:
    """Labels (samples,), or for "prompt" the mean over tokens of each prompt's embedding (samples, d).

    Raises:
        UnknownLabel: the store has no such factor.
        ModelMismatch: --model is not the one that the store was made with.
    """
    if name != "prompt":
        return store.labels(name)
    from apps.checks import check_model
    from probe.interventions.guide import text_embeddings

    pipe = load_model(options)
    check_model(pipe, store.fingerprint, store.path)
    return text_embeddings(pipe, store.samples.column("prompt").to_pylist()).mean(1).cpu().numpy()
