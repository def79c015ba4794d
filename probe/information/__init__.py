"""Information that words carry about images, in bits: one node table of a denoiser, and reductions of it.

Read ``table.py`` first: everything is a reduction of its errors and differences. The README beside this file has the
quantities, their equations and an example each.
"""

from probe.information.ablation import (
    ablation_columns,
    carried_by_two,
    without_feature,
    without_head,
)
from probe.information.adapt import adaptive_nodes, measure_gap
from probe.information.classify import Labels, classify, fano, running_labels
from probe.information.columns import Column, caption_columns, class_columns
from probe.information.control import GaussianControl
from probe.information.edited import Edited, without_direction
from probe.information.intervals import Interval, interval
from probe.information.lattice import co_information, lattice_atoms, lattice_pid
from probe.information.learned import LearnedInformation
from probe.information.learned_denoiser import LearnedDenoiser
from probe.information.learned_labels import LabelDenoiser
from probe.information.likelihood import Likelihood, likelihood
from probe.information.maps import guidance_difference, word_maps
from probe.information.mutual import Information, information, pixel_nats, word_information
from probe.information.nodes import GapCurve, Nodes
from probe.information.perceptrons import Training
from probe.information.pid import Atoms, Decomposition, atoms, pid
from probe.information.suitable import check_pipeline
from probe.information.table import Cost, NodeTable, estimate, measure
from probe.information.table_store import collect_table, open_table
from probe.information.window import TruncatedWindow, Window, check_window

__all__ = [
    "Atoms",
    "Column",
    "Cost",
    "Decomposition",
    "Edited",
    "GapCurve",
    "GaussianControl",
    "Information",
    "Interval",
    "LabelDenoiser",
    "Labels",
    "LearnedDenoiser",
    "LearnedInformation",
    "Likelihood",
    "NodeTable",
    "Nodes",
    "Training",
    "TruncatedWindow",
    "Window",
    "ablation_columns",
    "adaptive_nodes",
    "atoms",
    "caption_columns",
    "carried_by_two",
    "check_pipeline",
    "check_window",
    "class_columns",
    "classify",
    "co_information",
    "collect_table",
    "estimate",
    "fano",
    "guidance_difference",
    "information",
    "interval",
    "lattice_atoms",
    "lattice_pid",
    "likelihood",
    "measure",
    "measure_gap",
    "open_table",
    "pid",
    "pixel_nats",
    "running_labels",
    "without_direction",
    "without_feature",
    "without_head",
    "word_information",
    "word_maps",
]
