"""Any diffusers pipeline behind a few functions: load it, name it, know its schedule, generate with it.

Read ``generate.py`` first: everything that is measured goes through the pipeline's own ``__call__``. Estimators see a
denoiser through ``eps_model.py``; ``analytic`` has denoisers whose answers are known.
"""

from probe.model.branches import Branches, branch_layout
from probe.model.eps_model import EpsModel, noised, score, x0_hat
from probe.model.fingerprint import fingerprint, fingerprint_hash, model_name
from probe.model.generate import GenerationDefaults, generate, generation_defaults
from probe.model.load import load_pipeline
from probe.model.pipeline_eps import PipelineEps
from probe.model.schedule import schedule, schedule_of
from probe.model.steps import StepClock, denoiser

__all__ = [
    "Branches",
    "EpsModel",
    "GenerationDefaults",
    "PipelineEps",
    "StepClock",
    "branch_layout",
    "denoiser",
    "fingerprint",
    "fingerprint_hash",
    "generate",
    "generation_defaults",
    "load_pipeline",
    "model_name",
    "noised",
    "schedule",
    "schedule_of",
    "score",
    "x0_hat",
]
