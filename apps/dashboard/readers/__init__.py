"""Cached readers of a run's files. Everything the pages show comes through here, and nothing here can load
a model.

A cache entry is keyed by the path and by the time and size of the file that marks the artefact, so a
rebuilt bundle is read anew and an unchanged one never again. Caches are bounded. Entries are shared between
readers, not copied: pages never change what they get.
"""

from apps.dashboard.readers.bundles import bundle as bundle
from apps.dashboard.readers.bundles import concept_scores as concept_scores
from apps.dashboard.readers.bundles import features as features
from apps.dashboard.readers.dictionaries import WEIGHTS as WEIGHTS
from apps.dashboard.readers.dictionaries import decoder as decoder
from apps.dashboard.readers.dictionaries import dictionary as dictionary
from apps.dashboard.readers.dictionaries import direction as direction
from apps.dashboard.readers.dictionaries import metrics as metrics
from apps.dashboard.readers.lists import lists as lists
from apps.dashboard.readers.matches import Place as Place
from apps.dashboard.readers.matches import common_samples as common_samples
from apps.dashboard.readers.matches import matches as matches
from apps.dashboard.readers.pictures import best_tile as best_tile
from apps.dashboard.readers.pictures import example_strip as example_strip
from apps.dashboard.readers.pictures import example_tiles as example_tiles
from apps.dashboard.readers.results import before_after as before_after
from apps.dashboard.readers.results import found as found
from apps.dashboard.readers.results import measurement as measurement
from apps.dashboard.readers.results import steered as steered
from apps.dashboard.readers.results import unlearned as unlearned
from apps.dashboard.readers.samples import matching as matching
from apps.dashboard.readers.samples import opened_store as opened_store
from apps.dashboard.readers.samples import own_codes as own_codes
from apps.dashboard.readers.samples import sample as sample
from apps.dashboard.readers.samples import sample_codes as sample_codes
from apps.dashboard.readers.samples import sample_image as sample_image
from apps.dashboard.readers.samples import sites_of as sites_of
from apps.dashboard.readers.stamps import Stamp as Stamp
from apps.dashboard.readers.stamps import json_object as json_object
from apps.dashboard.readers.stamps import stamp as stamp
from apps.dashboard.readers.store import Collected as Collected
from apps.dashboard.readers.store import collected as collected
from apps.dashboard.readers.store import store_records as store_records
