"""``denoscope info site``: what the activations of a site tell about labels or prompts, step by step."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apps.commands._options import Commands, add_command, add_model, load_model, positive, steps_range

if TYPE_CHECKING:
    import numpy as np

    from activations_store import ActivationStore

_EXAMPLE = """
denoscope info site runs/x --site mid_block --tell object style --out runs/x/site
denoscope info site runs/x --tell prompt --steps 0,5,9 --components 16 --out runs/x/prompts --dry-run
"""


def add_parser(parts: Commands) -> None:
    """Declare the question."""
    part = add_command(
        parts,
        "site",
        run,
        summary="what the activations of a site tell about labels or prompts",
        about="Mutual information of a site's rows with a label or with the prompt's embedding. A small denoiser is "
        "trained on the rows for each step and label (MINDE, MMG), and measured on rows that it has not seen; a "
        "second, on labels dealt to other rows, is the null. The standard form is the estimate, mostly a low one; the "
        "orthogonal one beside it rises with overfitting and falls with too little training. The time is told first; "
        "a stopped run goes on when the same command is given again. OUT gets site.json.",
        example=_EXAMPLE,
        resumable=True,
    )
    part.add_argument("run_folder", metavar="RUN", type=Path, help="run folder with a store")
    part.add_argument("--site", help="the site (default: the store's only one)")
    part.add_argument(
        "--tell", nargs="+", required=True, metavar="LABEL", help="labelled factors of the store, or prompt"
    )
    part.add_argument("--steps", type=steps_range, help="such as 0-4,9 (default: five, from first to last)")
    part.add_argument("--branch", help="of guidance (default: cond, or the store's only one)")
    part.add_argument("--view", choices=("mean", "map"), default="mean", help="a row: the map's mean, or the map")
    part.add_argument("--components", type=positive, default=8, help="principal components that are kept of each side")
    part.add_argument("--training-steps", type=positive, default=2000, help="of each denoiser")
    part.add_argument("--seed", type=int, default=0, help="of split, weights, noise and null")
    add_model(part)
    part.add_argument("--out", type=Path, required=True, help="folder for the results")
    part.add_argument("--dry-run", action="store_true", help="tell the cost and stop")


def run(options: argparse.Namespace) -> None:
    """Check, estimate, train, show."""
    from activations_store import ActivationStore
    from apps.commands._options import store_folder
    from apps.information.site import SiteRequest, site_row, site_table
    from apps.measurement import Measurement
    from apps.progress import Clock, bar
    from apps.runs import Run, find_site
    from apps.stages import Stages
    from probe.directions.rows import SiteRows
    from probe.information.learned_denoiser import Training, training_seconds

    store = ActivationStore.open(store_folder(options.run_folder))
    site = find_site(store, options.site)
    branch = options.branch or ("cond" if "cond" in store.spec.branches else store.spec.branches[0])
    n_steps = len(store.spec.timesteps)
    steps = options.steps or tuple(sorted({round(k * (n_steps - 1) / 4) for k in range(5)}))
    told = {name: told_values(options, store, name) for name in options.tell}
    rows = SiteRows(store, site, branch, options.view, steps)
    training = Training(steps=options.training_steps, seed=options.seed)
    n, d = len(rows.samples), min(options.components, rows.width)
    seconds = training_seconds(d, options.components, training)
    trainings = len(told) * len(steps)
    print(
        f"{n} samples of {site}, {len(steps)} steps, told {', '.join(told)}: {trainings} trainings, nulls beside them, "
        f"of {training.steps} steps, about {trainings * seconds:.0f} s"
    )
    if options.dry_run:
        return
    clock = Clock()
    stages = Stages(Run(options.out), print, trainings)
    found = []
    for name, values in told.items():
        for step in steps:
            request = SiteRequest(name, step, options.components, training, options.seed)
            with bar(f"{name}, step {step}", "step") as progress:
                found.append(
                    stages.do(
                        f"{name}-{step}",
                        f"{name} at step {step}",
                        {"rows": rows.record(), "model": store.fingerprint} | request.record(),
                        lambda request=request, values=values, p=progress: site_row(rows, values, request, p),
                    )
                )
    about = {"rows": rows.record(), "components": options.components, "training": training.steps, "seed": options.seed}
    Measurement("info.site", found, {}, config=about).write(options.out / "site.json")
    print(site_table(found))
    print(f"\n{options.out / 'site.json'} ({clock})")


def told_values(options: argparse.Namespace, store: ActivationStore, name: str) -> np.ndarray:
    """Labels (samples,), or for "prompt" the mean over tokens of each prompt's embedding (samples, d).

    Raises:
        UnknownLabel: the store has no such factor.
        InvalidOption: --model is not the one that the store was made with.
    """
    if name != "prompt":
        return store.labels(name)
    from apps.errors import InvalidOption
    from probe.interventions.guide import text_embeddings
    from probe.model import fingerprint

    pipe = load_model(options)
    if fingerprint(pipe)["weights_hash"] != store.fingerprint.get("weights_hash"):
        raise InvalidOption(
            f"info site: {store.path} was collected from {store.fingerprint.get('name')!r}, whose weights are not "
            f"those of {options.model!r}; give that model with --model."
        )
    return text_embeddings(pipe, store.samples.column("prompt").to_pylist()).mean(1).cpu().numpy()
