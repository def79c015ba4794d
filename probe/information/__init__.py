"""Information that words carry about images, in bits: one node table of a denoiser, and reductions of it.

Read ``table.py`` first: everything is a reduction of its errors and differences. The README beside this file has the
quantities, their equations and an example each.
"""

from probe.information.adapt import adaptive_nodes, measure_gap
from probe.information.classify import Labels, classify
from probe.information.columns import Column, caption_columns, class_columns
from probe.information.control import GaussianControl
from probe.information.edited import Edited, without_direction
from probe.information.intervals import Interval, interval
from probe.information.likelihood import Likelihood, likelihood
from probe.information.mutual import Information, information, word_information
from probe.information.nodes import GapCurve, Nodes
from probe.information.pid import Atoms, Decomposition, atoms, pid
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
    "Labels",
    "Likelihood",
    "NodeTable",
    "Nodes",
    "TruncatedWindow",
    "Window",
    "adaptive_nodes",
    "atoms",
    "caption_columns",
    "check_window",
    "class_columns",
    "classify",
    "collect_table",
    "estimate",
    "information",
    "interval",
    "likelihood",
    "measure",
    "measure_gap",
    "open_table",
    "pid",
    "without_direction",
    "word_information",
]
