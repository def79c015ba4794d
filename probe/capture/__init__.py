"""Record what a model computes: name tensors, know the size before the run, write them to an activation store.

Read ``collect.py`` first. ``sites.py`` says which tensors there are, ``recording.py`` what a plan fixes before it
runs, ``plan.py`` and ``image_plan.py`` the two kinds of samples: generations and real images.
"""

from probe.capture.collect import NonFinite, collect, nonfinite
from probe.capture.estimate import Estimate, estimate
from probe.capture.image_files import ImageSet, read_images
from probe.capture.image_plan import ImagePlan
from probe.capture.listing import list_sites
from probe.capture.plan import CapturePlan
from probe.capture.prompts import PromptSet, read_prompts
from probe.capture.recorder import CallClock, Recorder
from probe.capture.shapes import SiteShape, store_spec
from probe.capture.sites import PORTS, Site, resolve_sites
from probe.capture.size import Cheaper, DiskUse
from probe.capture.tokens import TokenLayout

__all__ = [
    "PORTS",
    "CallClock",
    "CapturePlan",
    "Cheaper",
    "DiskUse",
    "Estimate",
    "ImagePlan",
    "ImageSet",
    "NonFinite",
    "PromptSet",
    "Recorder",
    "Site",
    "SiteShape",
    "TokenLayout",
    "collect",
    "estimate",
    "list_sites",
    "nonfinite",
    "read_images",
    "read_prompts",
    "resolve_sites",
    "store_spec",
]
