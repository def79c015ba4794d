"""Lenses: read-outs that return maps and curves, of what the model draws and of given images.

Each file is one lens, with its idea and its source in the docstring; the README beside this file lists them.
"""

from probe.lenses.attention_maps import AttentionMaps, attention_maps
from probe.lenses.classifier import classify_images
from probe.lenses.correspondence import Matches, correspond, pck
from probe.lenses.drift import Drift, drift
from probe.lenses.features import Features, diffusion_features
from probe.lenses.gradient_attention import gradient_attention
from probe.lenses.hyperfeatures import Hyperfeatures
from probe.lenses.inversion import Inversion, invert_images
from probe.lenses.noised import NoisedBatch, NoisedImages
from probe.lenses.probe_grid import ProbeGrid, probe_grid, store_vectors
from probe.lenses.reading import cross_attention_sites
from probe.lenses.segment import background_segment, normalised_cut
from probe.lenses.text_lens import TextLens, encoder_layers, text_lens, without_layers
from probe.lenses.tracing import Trace, trace
from probe.lenses.words import word_positions

__all__ = [
    "AttentionMaps",
    "Drift",
    "Features",
    "Hyperfeatures",
    "Inversion",
    "Matches",
    "NoisedBatch",
    "NoisedImages",
    "ProbeGrid",
    "TextLens",
    "Trace",
    "attention_maps",
    "background_segment",
    "classify_images",
    "correspond",
    "cross_attention_sites",
    "diffusion_features",
    "drift",
    "encoder_layers",
    "gradient_attention",
    "invert_images",
    "normalised_cut",
    "pck",
    "probe_grid",
    "store_vectors",
    "text_lens",
    "trace",
    "without_layers",
    "word_positions",
]
