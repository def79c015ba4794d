"""How the denoising step enters a dictionary.

    shared      it does not: one dictionary for all steps, an architecture as it is
    per_step    a dictionary for each step, or for each group of steps (per_step.py)
    film        one dictionary behind a scale and a shift that depend on the log-SNR (film.py)
    residual    one dictionary of what a linear prediction from the step before leaves over (residual.py)

All are built from the architectures, not beside them. A step is named by its log-SNR, the unit that compares models and
step counts; each dictionary knows the levels it was trained on and takes the nearest. At one level a timed dictionary
is an ordinary one, and `at(level)` is that one:

    z = sae.at(level).encode(x)        xh = sae.at(level).decode(z)        sae.at(level).directions  (d_sae, d_in)

Everything that uses dictionaries asks `members` for one dictionary a step and goes on from there.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from activations_store import ActivationStore
from sae.architectures.autoencoder import SparseAutoencoder
from sae.architectures.inputs import Moments
from sae.config import SAEConfig, Sized
from sae.contract import Loss, SparseDictionary
from sae.errors import ConfigError
from sae.numerics.peers import Peers
from sae.numerics.sparse import TopKCode


class TimedSAE(nn.Module, Sized, ABC):
    """One or more architectures, and the rule by which a noise level chooses or changes them.

    Attributes:
        config: of the whole; `config.d_sae` counts the features of all cores.
        metadata: as for an architecture.
        cores: the architectures.
        levels: (T,) float64 log-SNR of the steps it was trained on, in sampling order; on any device.
    """

    READS_PREVIOUS: ClassVar[bool] = False  # True if a row is read together with the row of the step before

    def __init__(
        self,
        config: SAEConfig,
        cores: Sequence[SparseAutoencoder],
        *,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """From `n_groups` dictionaries of `core_config(config)`; use `make_sae`. `seed`: of what stands around them."""
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = dict(metadata or {})
        self.cores: Any = nn.ModuleList(cores)
        self.levels = torch.tensor(config.levels, dtype=torch.float64)  # no buffer: it keeps its precision
        self.make_own(seed)

    @abstractmethod
    def make_own(self, seed: int) -> None:
        """Makes the tensors that stand around the cores, at their first values."""

    # Using it.

    @abstractmethod
    def at(self, log_snr: float, previous: Tensor | None = None) -> SparseDictionary:
        """The dictionary of one noise level. It shares the weights.

        Args:
            log_snr: the level; the nearest of `levels` counts.
            previous: (..., d_in), for a residual dictionary: the rows of the step before, one for each row that will
                be encoded. Not used at the first level.
        """

    def level_of(self, log_snr: Tensor | float) -> Tensor:
        """(...) int64: the nearest level; the first of equal ones."""
        value = torch.as_tensor(log_snr, dtype=torch.float64)
        if value.device != self.levels.device:
            self.levels = self.levels.to(value.device)
        return (value.unsqueeze(-1) - self.levels).abs().argmin(-1)

    @property
    def W_dec(self) -> Tensor:
        """(d_sae, d_in) features one after another, as the cores see them; `at(level).directions` at the site."""
        return torch.cat([core.directions for core in self.cores])

    @property
    def directions(self) -> Tensor:
        """(d_sae, d_in): what a code of 1 adds to x, for `film` without its modulation; see `at(level).directions`."""
        return self.W_dec

    def encode(self, x: Tensor) -> Tensor:
        """Not defined: raises ConfigError that names `at`."""
        raise self._needs_level()

    def encode_sparse(self, x: Tensor) -> TopKCode:
        """Not defined: raises ConfigError that names `at`."""
        raise self._needs_level()

    def decode(self, z: Tensor) -> Tensor:
        """Not defined: raises ConfigError that names `at`."""
        raise self._needs_level()

    def decode_sparse(self, code: TopKCode) -> Tensor:
        """Not defined: raises ConfigError that names `at`."""
        raise self._needs_level()

    def _needs_level(self) -> ConfigError:
        return ConfigError(
            f"A dictionary with time {self.config.time!r} codes a row differently at every step: use sae.at(log_snr), "
            "or sae.architectures.timed.members for all steps of a store."
        )

    def folded(self) -> Self:
        """A copy with the same codes and reconstructions whose cores are folded."""
        return type(self)(self.config, [core.folded() for core in self.cores], metadata=self.metadata)

    @classmethod
    def own_shapes(cls, config: SAEConfig) -> dict[str, tuple[int, ...]]:
        """Name and shape of what `file_tensors` has beyond the cores'."""
        return {}

    def file_tensors(self) -> dict[str, Tensor]:
        """As for an architecture; the cores' tensors are numbered."""
        return {f"{n}.{name}": t for n, core in enumerate(self.cores) for name, t in core.file_tensors().items()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """As for an architecture."""
        for n, core in enumerate(self.cores):
            core.load_file_tensors({name: tensors[f"{n}.{name}"] for name in core.file_tensors()})

    # Training; see contract.Architecture.

    @property
    def peers(self) -> Peers:
        """As for the architecture."""
        return self.cores[0].peers

    @peers.setter
    def peers(self, peers: Peers) -> None:
        for core in self.cores:
            core.peers = peers

    def fit(self, moments: Sequence[Moments]) -> None:
        """Takes over the statistics of the rows that each core reads; before `initialise`."""
        for core, own in zip(self.cores, moments, strict=True):
            core.fit(own)

    @abstractmethod
    def initialise(self, rows: Tensor, log_snr: Tensor) -> None:
        """Sets what depends on the data from (n, d) rows and their levels (n,)."""

    @abstractmethod
    def loss(
        self, x: Tensor, dead: Tensor | None = None, log_snr: Tensor | None = None
    ) -> tuple[Loss, dict[str, Tensor]]:
        """Loss and gradients of rows x and their levels (B,); as for an architecture."""

    def trained_tensors(self) -> dict[str, Tensor]:
        """The cores', numbered."""
        return {f"{n}.{name}": t for n, core in enumerate(self.cores) for name, t in core.trained_tensors().items()}

    def fixed_tensors(self) -> dict[str, Tensor]:
        """The cores', numbered."""
        return {f"{n}.{name}": t for n, core in enumerate(self.cores) for name, t in core.fixed_tensors().items()}

    def after_update(self) -> None:
        """As for the architecture."""
        for core in self.cores:
            core.after_update()


def core_config(config: SAEConfig) -> SAEConfig:
    """The architecture inside: without time, and with its share of the features."""
    n = config.n_groups
    prefixes = None if config.prefixes is None else tuple(size // n for size in config.prefixes)
    return replace(config, time="shared", levels=None, groups=None, d_sae=config.d_sae // n, prefixes=prefixes)


def members(sae: Any, x: Tensor, log_snr: Sequence[float]) -> list[SparseDictionary]:
    """The dictionary of every step of some maps: the same one for all steps where time is shared.

    Args:
        x: (samples, steps, tokens, d).
        log_snr: of each step, in the order of x.

    Raises:
        ConfigError: a residual dictionary needs the steps it was trained on from the first on, none left out.
    """
    if not isinstance(sae, TimedSAE):
        return [sae] * len(log_snr)
    if not sae.READS_PREVIOUS:
        return [sae.at(float(level)) for level in log_snr]
    found = sae.level_of(torch.tensor([float(level) for level in log_snr])).tolist()
    if found != list(range(len(found))):
        raise ConfigError(
            f"A residual dictionary reads each step after the one before: it was trained on log-SNR "
            f"{[round(v, 2) for v in sae.levels.tolist()]}, and was given {[round(float(v), 2) for v in log_snr]}. "
            "Give its steps from the first on, none left out."
        )
    return [sae.at(float(level), x[:, t - 1] if t else None) for t, level in enumerate(log_snr)]


def default_steps(sae: Any, store: ActivationStore) -> list[int] | None:
    """Steps of a store that a dictionary is used on where none are named: those of its training, if it reads each step
    after the one before; None, for all, else.
    """
    if not isinstance(sae, TimedSAE) or not sae.READS_PREVIOUS:
        return None
    levels = torch.tensor(store.spec.log_snr, dtype=torch.float64)
    return [int((levels - level).abs().argmin()) for level in sae.levels.cpu()]


def encode_maps(sae: Any, x: Tensor, log_snr: Sequence[float]) -> TopKCode:
    """(samples, steps, tokens, d) maps to a (samples, steps, tokens, slots) sparse code; arguments as in `members`."""
    if not isinstance(sae, TimedSAE):
        return sae.encode_sparse(x)
    return stack_steps([member.encode_sparse(x[:, t]) for t, member in enumerate(members(sae, x, log_snr))])


def stack_steps(codes: Sequence[TopKCode]) -> TopKCode:
    """Codes (samples, tokens, slots) of single steps to one (samples, steps, tokens, slots) code."""
    slots = max(code.indices.shape[-1] for code in codes)
    padded = [[nn.functional.pad(part, (0, slots - part.shape[-1])) for part in code] for code in codes]
    values, indices = (torch.stack(parts, 1) for parts in zip(*padded, strict=True))
    return TopKCode(values, indices)
