"""Of the demo's report: everything that is needed to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apps import report as html
from apps.demo.config import DemoConfig
from apps.runs import Run


def how_section(run: Run, config: DemoConfig, measured: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """Model, dictionaries, versions and machine; the command lines; the time of each stage; all settings."""
    model = measured["config"]["model_fingerprint"]
    machine = measured["machine"]
    git = measured["git"] or {"commit": "not a checkout", "dirty": False}
    dictionaries = [row for row in measured["rows"] if row.get("measure") == "dictionary"]
    items = [
        ("model", f"{model['name']} ({model['model_class']}), weights {model['weights_hash'][:16]}"),
        ("scheduler", f"{model['scheduler']}, configuration {model['scheduler_config_hash'][:16]}"),
        *(
            (
                f"dictionary at {row['site']}",
                f"{row['features']} features, k {row['k']}, {row['rows']:,} rows; explained variance "
                f"{row['explained_variance']:.3f} (first step {row['ev_first_step']:.3f}, last "
                f"{row['ev_last_step']:.3f}), L0 {row['l0']:.1f}, dead {row['dead_fraction']:.1%}",
            )
            for row in dictionaries
        ),
        ("configuration", measured["config"]["config_hash"][:16]),
        ("versions", ", ".join(f"{name} {number}" for name, number in measured["versions"].items())),
        ("commit", git["commit"] + (", with local changes" if git["dirty"] else "")),
        (
            "machine",
            f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, model on {measured['device']}",
        ),
    ]
    seconds = [[str(r["stage"]), f"{r['value']:.0f}"] for r in measured["rows"] if r.get("measure") == "seconds"]
    target = run.folder.as_posix() if not run.folder.is_absolute() else f"runs/{run.name}"
    commands = [
        f"denoscope demo --out {target} --object {config.object} --style {config.style}",
        f"denoscope app {target}",
        *(
            f'denoscope generate --prompt "a red {config.object} on white background in flat style" '
            f"--recipe {target}/{record['recipe']} --out edited.png"
            for record in records
        ),
    ]
    fields = [[name, str(value)] for name, value in config.to_dict().items()]
    return html.section(
        "How it was made",
        html.definitions(items),
        html.code("\n".join(commands)),
        html.folded("Time of each stage, seconds", html.data_table(["stage", "seconds"], seconds)),
        html.folded("All settings", html.data_table(["setting", "value"], fields)),
    )
