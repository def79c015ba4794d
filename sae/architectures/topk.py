"""TopK sparse autoencoder (Makhzani & Frey 2013; Gao et al. 2024, arXiv 2406.04093).

    z = ReLU(TopK_k(p))

The k largest pre-activations of every row, whatever the row: k is the same everywhere.
"""

import torch
from torch import Tensor

from sae.architectures.autoencoder import SparseAutoencoder
from sae.numerics.peers import among_largest
from sae.numerics.selection import encode_rows
from sae.numerics.sparse import FlatCode, TopKCode


class TopKSAE(SparseAutoencoder):
    """A TopK dictionary; k features for every row."""

    FILE_ARCHITECTURE = "topk"

    def gate(self, pre: Tensor) -> Tensor:
        """ReLU(TopK_k(p))."""
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu())

    def sparse_code(self, centred: Tensor) -> FlatCode:
        """k entries a row."""
        return encode_rows(**self._product(centred), k=self.k).flat()

    def choose(self, centred: Tensor) -> FlatCode:
        """The same, with the encoder product in the precision of the configuration."""
        code = encode_rows(**self._product(centred), k=self.k, matmul=self.config.matmul)
        if self.shards.world == 1:
            return code.flat()
        kept = code._replace(values=among_largest(code.values, self.k, self.shards)).flat()
        return kept.keep(kept.values > 0)

    def _slots(self, code: FlatCode) -> TopKCode:
        return TopKCode(code.values.view(-1, self.k), code.indices.view(-1, self.k))
