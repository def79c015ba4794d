"""Record what a model computes: name tensors, know the size before the run, write them to an activation
store.

Read ``collect.py`` first. ``sites.py`` says which tensors there are, ``plan.py`` fixes a collection before it
runs.
"""

from probe.capture.collect import collect
from probe.capture.estimate import Estimate, estimate
from probe.capture.plan import CapturePlan
from probe.capture.prompts import PromptSet, read_prompts
from probe.capture.recorder import Recorder
from probe.capture.shapes import SiteShape, store_spec
from probe.capture.sites import PORTS, Site, resolve_sites

__all__ = [
    "PORTS",
    "CapturePlan",
    "Estimate",
    "PromptSet",
    "Recorder",
    "Site",
    "SiteShape",
    "collect",
    "estimate",
    "read_prompts",
    "resolve_sites",
    "store_spec",
]
