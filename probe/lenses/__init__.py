"""Lenses: read-outs that return maps and curves, of what the model draws and of given images.

Each file is one lens, with its idea and its source in the docstring; the README beside this file lists them.
"""

from probe.lenses.attention_maps import AttentionMaps, attention_maps, cross_attention_sites
from probe.lenses.gradient_attention import gradient_attention
from probe.lenses.noised import NoisedBatch, NoisedImages
from probe.lenses.words import word_positions

__all__ = [
    "AttentionMaps",
    "NoisedBatch",
    "NoisedImages",
    "attention_maps",
    "cross_attention_sites",
    "gradient_attention",
    "word_positions",
]
