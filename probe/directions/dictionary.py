"""The decoder columns of a dictionary as directions: what a feature of a sparse autoencoder adds to its site.

Any object with ``W_dec`` (d_sae, d) will do (``probe.interventions.Dictionary``); no autoencoder is imported here. The
store only gives the scale: the standard deviation of the site's rows along each column at each step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from activations_store import ActivationStore
from probe.directions.finder import StoreFinder
from probe.directions.rows import View
from probe.errors import InvalidDirection
from probe.interventions import Dictionary


@dataclass(kw_only=True, eq=False)
class DictionaryColumns(StoreFinder):
    """Decoder columns of some features. Needs a store for the scale, and the dictionary that was trained on the site.

    Attributes:
        dictionary: with ``W_dec`` (d_sae, d).
        features: numbers of the features.

    Example, after ``denoscope collect --sites mid_block unet:in --prompts canvas:16 --steps 2 --out runs/x``:
        >>> from activations_store import ActivationStore
        >>> from probe.directions import DictionaryColumns
        >>> from sae import TrainConfig, load_sae, train
        >>> store = ActivationStore.open("runs/x/store")
        >>> site = "unet.mid_block:out"
        >>> result = train(store, TrainConfig(site=site, expansion=2, k=8, epochs=1), "runs/x/sae")
        >>> found = DictionaryColumns(site=site, dictionary=load_sae("runs/x/sae"), features=[53]).fit(store)
        >>> edit = found.direction_.intervention(0, strength=4.0)
    """

    dictionary: Dictionary
    features: Sequence[int]
    view: View = "tokens"

    def fit(self, store: ActivationStore) -> Self:
        """One pass over the store.

        Raises:
            InvalidDirection: there is no such feature, or the columns are of another length than the rows.
        """
        rows = self._rows(store)
        columns = self.dictionary.W_dec.detach().cpu().numpy()
        chosen = [int(f) for f in self.features]
        if not chosen or not all(0 <= f < len(columns) for f in chosen) or rows.shape != columns.shape[1:]:
            raise InvalidDirection(
                f"DictionaryColumns: features {chosen[:10]} of a dictionary {columns.shape}, rows {rows.shape}; "
                f"expected features from 0 to {len(columns) - 1}, and rows as long as a column (view 'tokens', 'mean')."
            )
        self.direction_ = self._direction(rows, columns[chosen][None].astype(np.float64), "global")
        return self

    def _parameters(self) -> dict[str, Any]:
        """The dictionary goes by the hash of its decoder."""
        columns = np.ascontiguousarray(self.dictionary.W_dec.detach().cpu().float().numpy())
        rest = {
            "site": self.site,
            "branch": self.branch,
            "view": self.view,
            "features": [int(f) for f in self.features],
        }
        return rest | {"W_dec_sha256": hashlib.sha256(columns.tobytes()).hexdigest()}
