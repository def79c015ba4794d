"""The command line before it does anything: help with examples, spelling of options, interruption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apps.cli import build_parser, main

COMMANDS = (
    "demo", "collect", "train", "sae", "features", "directions", "info", "steer", "unlearn", "generate", "bench", "app",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"example:\n  denoscope {command} " in text
    assert "None" not in text


@pytest.mark.parametrize("part", ("canvas", "sae", "directions", "information", "lenses", "unlearn", "unlearn-many"))
def test_every_part_of_bench_shows_a_valid_example(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", part, "--help"])
    for line in capsys.readouterr().out.split("example:\n")[1].strip().splitlines():
        assert line.split()[:3] == ["denoscope", "bench", part]
        build_parser().parse_args(line.split()[1:])


def test_examples_in_help_are_valid_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        example = capsys.readouterr().out.split("example:\n")[1].replace("\\\n", " ")
        for line in example.strip().splitlines():
            words = shlex.split(line)
            assert words[0] == "denoscope"
            build_parser().parse_args(words[1:])


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, apps.cli; apps.cli.build_parser(); "
        "heavy = {'torch', 'numpy', 'diffusers', 'zarr', 'streamlit'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_messages_spell_settings_as_they_are_typed() -> None:
    from apps.commands._options import as_typed

    options = build_parser().parse_args(["collect", "--sites", "mid_block", "--out", "x"])
    said = "pool='mean' takes 2 MB; branches=('uncond', 'cond'); batch_size=8. dtype='int8' or max_samples_per_shard=1"
    assert as_typed(said, options) == (
        "--pool mean takes 2 MB; --branches uncond cond; --batch-size 8. --dtype int8 or max_samples_per_shard=1"
    )


def test_help_wraps_text_and_says_defaults_plainly() -> None:
    import argparse

    from apps.commands._options import HelpFormatter

    parser = argparse.ArgumentParser(
        prog="x",
        description="word " * 40,
        epilog="example:\n  " + "x" * 150,
        formatter_class=lambda prog: HelpFormatter(prog, width=80),
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="100 %% of them")
    parser.add_argument("--caption", default="", help="of a file")
    parser.add_argument("--force", action="store_true", help="replace")
    parser.add_subparsers(title="commands", metavar="COMMAND").add_parser("directions", help="find directions")
    text = parser.format_help()
    assert "  --seeds SEEDS ..." in text and "100 % of them (default: 0 1)" in text
    assert "(default: )" not in text and "(default: False)" not in text
    assert max(len(line) for line in text.splitlines() if "x" * 150 not in line) <= 80
    assert any(line.split() == ["directions", "find", "directions"] for line in text.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("denoscope ")


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apps.prompts.prompts_from", interrupt)
    assert main(["collect", "--sites", "mid_block", "--out", "x"]) == 130
    assert "Run the same command again" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from apps.errors import RunNotFound

    with pytest.raises(RunNotFound):
        main(["--debug", "features", str(tmp_path)])
