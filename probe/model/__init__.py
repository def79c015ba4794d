"""Any diffusers pipeline behind a few functions: load it, name it, know its schedule, generate with it.

Read ``generate.py`` first: everything that is measured goes through the pipeline's own ``__call__``.
"""

from probe.model.fingerprint import fingerprint, fingerprint_hash, model_name
from probe.model.generate import GenerationDefaults, generate, generation_defaults
from probe.model.load import load_pipeline
from probe.model.schedule import schedule, schedule_of
from probe.model.steps import StepClock, branch_layout, denoiser

__all__ = [
    "GenerationDefaults",
    "StepClock",
    "branch_layout",
    "denoiser",
    "fingerprint",
    "fingerprint_hash",
    "generate",
    "generation_defaults",
    "load_pipeline",
    "model_name",
    "schedule",
    "schedule_of",
]
