"""Build canvas's networks: ``python -m probe.canvas.train`` (see ``--help``)."""

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from probe.canvas.judge import JUDGE_DIR
from probe.canvas.model import MODEL_DIR
from probe.canvas.train.autoencoder import AutoencoderTask
from probe.canvas.train.denoiser import DenoiserTask
from probe.canvas.train.export import export_autoencoder, export_judge, export_pipeline
from probe.canvas.train.judge import JudgeTask
from probe.canvas.train.loop import LoopConfig, fit
from probe.canvas.world import FACTORS

GATE = 0.98  # object and style accuracy on reconstructions, below which training the denoiser is a waste

EXAMPLES = """examples:
  python -m probe.canvas.train --work runs/canvas              train on from the shipped networks
  python -m probe.canvas.train --work runs/canvas --scratch    all stages from nothing, about two hours on two cores
  python -m probe.canvas.train --work runs/canvas --denoiser-steps 20000   prolong; a finished stage continues
A run that is stopped continues from its last checkpoint when the same command is given again.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m probe.canvas.train",
        description="Train canvas: autoencoder, judge, gate, denoiser; then write the shipped folders.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for renders, latents and checkpoints")
    parser.add_argument("--scratch", action="store_true", help="do not start from the shipped networks")
    parser.add_argument("--renders", type=int, default=48000, help="images to draw and train on (default 48000)")
    parser.add_argument("--world", type=int, default=2, help="processes on a CPU (default 2)")
    parser.add_argument("--autoencoder-steps", type=int, default=3600, help="of 32 images (default 3600)")
    parser.add_argument("--judge-steps", type=int, default=3000, help="of 96 images (default 3000)")
    parser.add_argument("--denoiser-steps", type=int, default=9000, help="of 64 images (default 9000)")
    parser.add_argument(
        "--out", type=Path, default=MODEL_DIR, help="pipeline folder to write (default: the shipped one)"
    )
    parser.add_argument("--judge-out", type=Path, default=JUDGE_DIR, help="judge folder (default: the shipped one)")
    return parser


def _shipped_start(work: Path) -> Path:
    """The shipped denoiser as a starting point for ``DenoiserTask``, in full precision."""
    state = {}
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = load_file(MODEL_DIR / part / f"{name}.safetensors")
        prefix = "text_encoder." if part == "text_encoder" else "unet."
        state |= {prefix + k: v.float() for k, v in weights.items()}
    path = work / "shipped.safetensors"
    save_file(state, path)
    return path


def main(argv: list[str] | None = None) -> None:
    """Run the stages; each is skipped when its checkpoint has all its steps."""
    args = _parser().parse_args(argv)
    work, vae = args.work, args.work / "vae"
    work.mkdir(parents=True, exist_ok=True)
    if args.scratch:
        task = AutoencoderTask(work, args.renders)
        cfg = LoopConfig(args.autoencoder_steps, 32, 2e-3, weight_decay=1e-3, cooldown=0.4)
        ema = fit(task, cfg, work / "autoencoder", world=args.world, name="autoencoder")
        export_autoencoder(ema, vae)
        cfg = LoopConfig(args.judge_steps, 96, 2e-3, cooldown=0.5, warmup=100)
        ema = fit(JudgeTask(work, args.renders, vae), cfg, work / "judge", world=args.world, name="judge")
        accuracy = export_judge(ema, vae, work, args.judge_out)
        print(json.dumps(accuracy, indent=2))
        low = {f: accuracy[f"decoded.{f}"] for f in FACTORS if accuracy[f"decoded.{f}"] < GATE}
        if low:
            raise SystemExit(
                f"gate: the judge reads {low} of reconstructions, expected at least {GATE}; "
                f"prolong the autoencoder (--autoencoder-steps {2 * args.autoencoder_steps}) and run again"
            )
    elif not vae.exists():
        shutil.copytree(MODEL_DIR / "vae", vae)
    start = None if args.scratch else _shipped_start(work)
    cfg = LoopConfig(args.denoiser_steps, 64, 1e-3 if args.scratch else 5e-4, cooldown=0.35, warmup=300, ema=0.999)
    task = DenoiserTask(work, args.renders, vae, start)
    ema = fit(task, cfg, work / "denoiser", world=args.world, name="denoiser")
    export_pipeline(ema, vae, work, args.renders, args.out)
    print(f"written: {args.out}; measure it with: denoscope bench canvas --out canvas.json")


if __name__ == "__main__":
    main()
