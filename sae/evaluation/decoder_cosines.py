"""How alike the decoder rows of a dictionary are: histograms of their cosines.

All pairs show whether features crowd into a cone; the nearest neighbour of each shows features that were split or
learned twice. For random directions in d dimensions cosines have mean 0 and standard deviation 1 / sqrt(d), and that is
what a dictionary's own histogram is to be compared with.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

N_BINS = 40
_CHUNK = 1024


class CosineHistogram(NamedTuple):
    """Counts over equal bins of [-1, 1].

    Attributes:
        edges: (n_bins + 1,).
        pairs: (n_bins,) int64, of all pairs of different features.
        nearest: (n_bins,) int64, of each feature with the one most like it.
        above: pairs with a cosine above 0.9.
    """

    edges: np.ndarray
    pairs: np.ndarray
    nearest: np.ndarray
    above: int


def cosine_histogram(decoder: Tensor, *, n_bins: int = N_BINS) -> CosineHistogram:
    """Cosines of (d_sae, d_in) decoder rows. Takes d_sae^2 d_in operations, in chunks."""
    rows = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1)
    edges = np.linspace(-1.0, 1.0, n_bins + 1)
    pairs, nearest, above = np.zeros(n_bins, np.int64), np.zeros(n_bins, np.int64), 0
    for start in range(0, len(rows), _CHUNK):
        similar = (rows[start : start + _CHUNK] @ rows.T).clamp(-1, 1)
        own = torch.arange(len(similar))
        similar[own, own + start] = torch.nan
        later = torch.ones_like(similar, dtype=torch.bool).triu(start + 1)  # each pair once
        values = similar[later].numpy()
        pairs += np.histogram(values, edges)[0]
        above += int((values > 0.9).sum())
        if len(rows) > 1:
            nearest += np.histogram(similar.nan_to_num(-1.0).amax(1).numpy(), edges)[0]
    return CosineHistogram(edges, pairs, nearest, above)
