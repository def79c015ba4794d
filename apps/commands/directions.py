"""``denoscope directions``: find a direction on a store or a model, and save it with a recipe that adds it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.commands._options import Commands, add_command, load_model, positive
from apps.directions.methods import METHODS, chosen, components_of, overview

if TYPE_CHECKING:
    from apps.runs import Run
    from probe.directions import Direction
    from probe.interventions import Intervention

_EXAMPLE = """
denoscope directions runs/x --site up_blocks.1 --method mean-difference --factor object --positive star
denoscope directions runs/x --site mid_block --method pca --view map --components 5 --component 2 --strength 3
denoscope directions runs/x --method dictionary --sae mid_block --feature 53 --strength 4
denoscope directions runs/x --method latent-svd --source 0 --target 1 --at-step 3 --rank 8
denoscope directions runs/y --method h-jacobian --site mid_block --prompt "a red star in flat style" --at-step 5
denoscope directions runs/y --method pullback --site mid_block --prompt "a red star in flat style" --strength 4
denoscope directions runs/y --method local-edit --mask 0,0,1,0.5 --prompt "a red star in flat style"
denoscope directions runs/y --method concept-vector --prompt "a red star" --without "a star" --dry-run
denoscope directions runs/y --method asyrp --prompt "a red cup" --without "a blue cup" --iterations 10
denoscope directions runs/y --method noise-clr --prompts canvas:16 --components 4 --dry-run
denoscope directions runs/y --method adapter-sliders --prompt "a star" --components 3 --iterations 100
denoscope directions runs/y --method text-difference --prompt "a red cup" --without "a blue cup" --strength 1
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "directions",
        run,
        summary="find directions in a store or a model, save them with a recipe",
        about="Fit a direction finder, print how good it is, and save the direction and a recipe that adds it while "
        "the model generates (denoscope generate --recipe). --dry-run says what it would cost and stops. What each "
        "method is: probe/directions/README.md; how they compare: docs/directions.md.",
        example=_EXAMPLE,
    )
    parser.epilog = f"{overview()}\n\n{parser.epilog}"
    parser.add_argument(
        "run_folder", metavar="RUN", type=Path, help="run folder, with a store for methods on one; else it may be new"
    )
    parser.add_argument("--method", choices=METHODS, metavar="METHOD", default="mean-difference", help="the finder")
    parser.add_argument("--site", help="the site (default: the store's only one; on a model mid_block)")
    parser.add_argument("--branch", default="cond", help="guidance branch to read, and to edit")
    parser.add_argument("--components", type=positive, help="vectors, for methods that find several (default: 5)")
    parser.add_argument("--component", type=int, default=0, help="the one that the recipe adds")
    parser.add_argument(
        "--strength",
        type=float,
        help="of the recipe: standard deviations of the site along the vector, or lengths of a vector that was trained "
        "(default: the method's own)",
    )
    parser.add_argument("--name", help="name of the direction and the recipe (default: from method and label)")
    parser.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")
    store = parser.add_argument_group("on a store")
    store.add_argument("--factor", help="labelled factor, for methods that tell labels apart")
    store.add_argument("--positive", metavar="LABEL", help="the label that the direction points to")
    store.add_argument("--negative", metavar="LABEL", help="the label that it points away from (default: all others)")
    store.add_argument(
        "--view",
        choices=("mean", "tokens", "map"),
        help="what a row is (default: mean); on a model, one vector for all tokens, or one for each",
    )
    store.add_argument("--sae", metavar="NAME", help="dictionary: which of the run's (default: the only one)")
    store.add_argument(
        "--feature", type=int, nargs="+", default=[], metavar="N", help="dictionary: features, a vector each"
    )
    store.add_argument("--source", type=int, metavar="SAMPLE", help="latent-svd: the sample that is changed")
    store.add_argument("--target", type=int, metavar="SAMPLE", help="latent-svd: the sample it takes from")
    store.add_argument("--rank", type=positive, help="latent-svd: singular triplets that are exchanged (default: 4)")
    model = parser.add_argument_group("on a model")
    model.add_argument("--model", help="canvas, a folder, or a hub id (default: that of RUN's store, else canvas)")
    model.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, mps")
    model.add_argument("--prompt", action="append", default=[], help="what is shown; may be given several times")
    model.add_argument("--prompts", help="or: canvas:N, or a .txt, .csv or .jsonl file")
    model.add_argument("--without", action="append", default=[], help="for each --prompt, the same without the concept")
    model.add_argument("--seed", type=int, help="of the generation and of what is random (default: 0)")
    model.add_argument("--steps", type=positive, help="denoising steps of generations (default: the model's own)")
    model.add_argument("--guidance", type=float, help="guidance scale of generations (default: the model's own)")
    model.add_argument("--at-step", type=int, help="step of the point (default: in the middle)")
    model.add_argument("--mask", help="what may change: an image file, or left,top,right,bottom in shares of the image")
    model.add_argument("--null-rank", type=int, help="local-edit: moves of the rest that are ruled out (default: 5)")
    model.add_argument("--samples", type=positive, help="samples that are drawn to train on (default: 16)")
    model.add_argument("--iterations", type=positive, help="of training or decomposition (default: the finder's)")


def run(options: argparse.Namespace) -> None:
    """Check, foretell, fit, print, save."""
    from apps.errors import OutputExists
    from apps.prompts import prompts_from
    from apps.runs import Run, check_name

    options.prompt = [*options.prompt, *(prompts_from(options.prompts).prompts if options.prompts else ())]
    method = chosen(options)
    components_of(options)
    options.strength = method.strength if options.strength is None else options.strength
    target = Run(options.run_folder) if method.on_model else Run.open(options.run_folder)
    name = check_name(options.name or "-".join(filter(None, [options.method, options.factor, options.positive])))
    for path in (target.folder / "directions" / name, target.new("recipes", name)):
        if path.exists():
            raise OutputExists(f"directions: {str(path)!r} exists already; choose another --name, or remove it.")
    (_on_model if method.on_model else _on_store)(options, target, name)


def _on_store(options: argparse.Namespace, target: Run, name: str) -> None:
    from activations_store import ActivationStore
    from apps.directions.on_store import bytes_read, columns_of, finder_of, pair_direction, quality_table
    from apps.runs import find_site, store_folder

    store = ActivationStore.open(store_folder(options.run_folder))
    if options.method == "latent-svd":
        if options.dry_run:
            print("reads the state of two samples")
            return
        found = pair_direction(options, store)
        edit = found.intervention(0, options.strength, unit="raw")
    else:
        if options.method == "dictionary":
            finder = columns_of(options, target, store)
            site = finder.site
        else:
            site = find_site(store, options.site)
            finder = finder_of(options, site)
        if options.dry_run:
            print(f"reads {bytes_read(store, site) / 1e6:.1f} MB of {site}, once to a few times")
            return
        found = finder.fit(store).direction_
        print(quality_table(finder, found, store))
        edit = found.intervention(options.component, options.strength, branch=options.branch)
    prompt = str(store.samples.column("prompt").to_pylist()[options.source or 0])
    _save(options, target, name, (edit,), store.fingerprint, found, dict(found.provenance))
    _next(target, name, prompt)


def _on_model(options: argparse.Namespace, target: Run, name: str) -> None:
    from activations_store import ActivationStore
    from apps.directions.on_model import edits_of, fit, fit_of, quality
    from apps.progress import bar
    from probe.model import PipelineEps, fingerprint

    if options.model is None:
        options.model = ActivationStore.open(target.store).fingerprint["name"] if target.store.is_dir() else "canvas"
    model = PipelineEps(load_model(options))
    plan = fit_of(options, model)
    group = METHODS[options.method].group
    if options.dry_run or group == "trained":  # the others are soon done
        how = "at most" if group == "jacobian" else "about"
        print(f"{options.method}: {how} {plan.cost(model, options)} min", flush=True)
    if options.dry_run:
        return
    with bar(options.method, "iteration") as progress:
        finder = fit(plan, model, progress)
    print(quality(finder))
    found = vars(finder).get("direction_")
    about = dict(found.provenance if found is not None else finder.adapter_.provenance)
    edits = edits_of(finder, options.component, options.strength, options.branch)
    _save(options, target, name, edits, fingerprint(model.pipe), found, about)
    _next(target, name, (options.without or options.prompt)[0], options)


def _save(
    options: argparse.Namespace,
    target: Run,
    name: str,
    edits: tuple[Intervention, ...],
    fingerprint: dict[str, Any],
    found: Direction | None,
    provenance: dict[str, Any],
) -> None:
    """The direction, if what was found is one, and the recipe."""
    from probe.directions import save_direction
    from probe.interventions import Recipe

    about: dict[str, Any] = {"component": options.component, "provenance": provenance}
    if found is not None:
        about["direction"] = found.hash
        print(f"\ndirection in {save_direction(found, target.folder / 'directions' / name)}")
    print(f"recipe in {Recipe(edits, fingerprint, about).save(target.new('recipes', name))}")


def _next(target: Run, name: str, prompt: str, options: argparse.Namespace | None = None) -> None:
    given = vars(options) if options else {}
    how = "".join(f" --{key} {given[key]}" for key in ("model", "steps", "guidance") if given.get(key) is not None)
    seed = f" --seeds {given['seed']}" if given.get("seed") is not None else ""
    recipe = target.new("recipes", name)
    print(f"next: denoscope generate --prompt '{prompt}'{seed}{how} --recipe {recipe} --out edited.png")
