"""One image through all features at once: what is on in a part of it, and how that compares with the rest.

Read ``codes.py`` first. ``ranking.py`` says what "surprise" means. ``drawing.py`` draws a prompt of one's own and
records it as the run's samples were recorded; with ``previews.py`` it is all that needs a model here.
"""

from apps.inspecting.codes import Codes, drawn_codes, recorded_codes
from apps.inspecting.ranking import Compared, Corpus, Measures, compare, measure, ranked
from apps.inspecting.region import Region

__all__ = [
    "Codes",
    "Compared",
    "Corpus",
    "Measures",
    "Region",
    "compare",
    "drawn_codes",
    "measure",
    "ranked",
    "recorded_codes",
]
