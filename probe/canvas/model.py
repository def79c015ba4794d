"""Where the trained canvas pipeline lies: an ordinary diffusers folder."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "weights" / "model"
