"""The whole story on the embedded world: collect, learn, find, unlearn, steer, judge, report.

Each stage leaves its output in the run folder and is skipped when it is there already and was made from the same
things, so a run that was stopped at any moment goes on from there, and a changed setting repeats only what depends
on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.demo.config import DemoConfig
from apps.demo.stages import Demo
from apps.demo.steer import steer
from apps.errors import OutputExists
from apps.measurement import Measurement, write_json
from apps.runs import Run
from apps.stages import Say, Stages
from apps.unlearning import edits as unlearning

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from probe.canvas import Judge

MARK = "demo.json"


def run_demo(
    config: DemoConfig,
    out: str | Path,
    *,
    say: Say = print,
    pipe: DiffusionPipeline | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Run every stage that is not done yet.

    Args:
        config: what to do.
        out: run folder.
        say: where lines for people go.
        pipe, judge: instead of the shipped ones.

    Returns:
        The measurement that is in ``results.json``.

    Raises:
        OutputExists: the folder holds something that no demo made.
    """
    from apps.demo.report import write_report
    from apps.judging import shipped_judge
    from probe.model import load_pipeline

    run = _claim(Path(out))
    judge = judge or shipped_judge()
    model = load_pipeline(config.model) if pipe is None else pipe
    demo = Demo(config, run, model, judge, Stages(run, say, 5 + 2 * len(config.dictionary_sites)))
    store = demo.collect()
    dictionaries = {site: demo.train(store, site) for site in config.dictionary_sites}
    bundles = {site: demo.features(store, site, made) for site, made in dictionaries.items()}
    baseline = demo.unlearn_baseline()
    records = [
        demo.unlearn("object", config.object, config.object_site, store, bundles),
        demo.unlearn("style", config.style, config.style_site, store, bundles),
    ]
    steered = steer(demo, bundles)
    rows, ratios = unlearning.result_rows(demo.grid, records, baseline)
    rows += [made["row"] for made in dictionaries.values()] + steered["rows"]
    rows += [{"measure": "seconds", "stage": name, "value": seconds} for name, seconds in demo.stages.seconds.items()]
    measured = Measurement(
        "demo.canvas",
        rows,
        ratios | steered["ratios"],
        device=str(model.device),
        config=config.to_dict() | {"config_hash": config.content_hash, "model_fingerprint": demo.model},
    ).write(run.results)
    write_report(run, config, measured, demo.grid, records, baseline, steered)
    say(f"[{demo.stages.elapsed}] report in {run.report}")
    return measured


def _claim(folder: Path) -> Run:
    """The run folder, marked as a demo's."""
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExists(f"demo: {str(folder)!r} exists and was not made by the demo; choose another --out.")
    write_json(folder / MARK, {"made_by": "denoscope demo"})
    return Run(folder)
