"""What a dictionary is (`SAEConfig`), and what all configurations share: frozen, checked, JSON both ways, hashed.

Some fields are left out of the JSON while they have their default (`quiet`): a run that does not use such an option
keeps the name and the folder that it had before the option existed.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from activations_store.storage.jsonio import content_hash
from sae.errors import ConfigError

DEAD_AFTER_MAX = 10_000_000  # Gao et al. 2024 (arXiv 2406.04093): a latent silent for ten million tokens is dead

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu")
MATMULS = ("fp32", "bf16", "int8")
INPUTS = ("raw", "centred", "unit", "whitened")
TIMES = ("shared", "per_step", "film", "residual")
_NESTED = (16, 8, 4, 2)  # Matryoshka: the default sizes are d_sae divided by these, and d_sae


def quiet(default: Any) -> Any:
    """A field that is left out of the JSON while it has its default."""
    return field(default=default, metadata={"quiet": True})


class JsonConfig:
    """JSON round trip and content hash."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values (tuples become lists)."""
        values = asdict(self)  # type: ignore[call-overload]
        silent = {f.name: f.default for f in fields(self) if f.metadata.get("quiet")}  # type: ignore[arg-type]
        kept = {k: v for k, v in values.items() if k not in silent or v != silent[k]}
        return {k: _lists(v) for k, v in kept.items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Rebuilds the object; unknown fields are an error, absent ones take their default."""
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(value) - known)
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no field {', '.join(unknown)}; its fields are {', '.join(sorted(known))}."
            )
        return cls(**{k: _tuples(v) for k, v in value.items()})

    @property
    def content_hash(self) -> str:
        """Hex SHA-256 of the JSON form; names the configuration."""
        return content_hash(self.to_json())


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_options(input: str, time: str, architecture: str) -> None:
    """Refuse options that are unknown or exclude each other."""
    require(input in INPUTS, f"input is {input!r}; expected one of {', '.join(INPUTS)}.")
    require(time in TIMES, f"time is {time!r}; expected one of {', '.join(TIMES)}.")
    require(
        (input, time) != ("unit", "film"),
        "input 'unit' with time 'film': the shift of film would have to grow with every row's length. Choose another.",
    )
    require(
        (time, architecture) != ("film", "relu"),
        "time 'film' with architecture 'relu': the gain of film would shrink the codes that the L1 penalty counts, and "
        "the decoder undo it. Choose another.",
    )


def check_crosscoder(input: str, time: str) -> None:
    """Refuse options that a crosscoder cannot have."""
    require(
        input == "raw" and time == "shared",
        f"input is {input!r} and time {time!r}: a crosscoder normalises each of its blocks and reads steps as blocks, "
        "so it takes input 'raw' and time 'shared' only.",
    )


@dataclass(frozen=True)
class SAEConfig(JsonConfig):
    """Shape and objective of one sparse autoencoder."""

    d_in: int  # width of a row
    d_sae: int  # number of features
    k: int  # features kept for a row; for jumprelu the number aimed at, for relu not used
    site: str = ""  # the site whose rows it reads, e.g. "unet.mid_block:out"
    architecture: str = "topk"  # one of ARCHITECTURES
    aux_alpha: float = 1 / 32  # weight of the loss that revives dead features; 0 turns it off
    k_aux: int | None = None  # dead features used by that loss; None = d_in // 2
    dead_after: int = DEAD_AFTER_MAX  # a feature silent for this many rows is dead
    input_scale: bool = True  # train on x*s with E||x*s|| = sqrt(d_in); folded into the weights when saved
    sparsity: float = quiet(1.0)  # jumprelu, relu: weight of the sparsity term
    bandwidth: float = quiet(0.1)  # jumprelu: width of the smoothed step, in units of s x
    prefixes: tuple[int, ...] | None = quiet(None)  # matryoshka: sizes m_j; None = d_sae / 16, / 8, / 4, / 2, all
    matmul: str = quiet("fp32")  # encoder product in training: "bf16" or "int8" choose coarsely, values stay exact
    input: str = quiet("raw")  # what is done to a row first, one of INPUTS (inputs.py)
    time: str = quiet("shared")  # how the denoising step enters, one of TIMES (timed.py)
    levels: tuple[float, ...] | None = quiet(None)  # log-SNR of the steps it was trained on; only where time needs it
    groups: tuple[int, ...] | None = quiet(None)  # per_step: which dictionary, from 0, reads each level
    blocks: tuple[tuple[str, int | None, int], ...] | None = quiet(None)  # crosscoder: (site, step or None, width)

    def __post_init__(self) -> None:
        require(
            self.architecture in ARCHITECTURES,
            f"architecture is {self.architecture!r}; expected one of {', '.join(ARCHITECTURES)}.",
        )
        require(self.matmul in MATMULS, f"matmul is {self.matmul!r}; expected one of {', '.join(MATMULS)}.")
        require(
            self.sparsity >= 0,
            f"sparsity is {self.sparsity}; a negative weight would reward features for being on.",
        )
        require(self.bandwidth > 0, f"bandwidth is {self.bandwidth}; it must be positive.")
        for name in ("d_in", "d_sae", "k", "dead_after"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole, f"{name} is {value!r}; it must be a whole number.")
        require(self.d_in > 0, f"d_in is {self.d_in}; a row has at least one value.")
        require(self.d_sae > 0, f"d_sae is {self.d_sae}; a dictionary has at least one feature.")
        require(0 < self.k <= self.d_sae, f"k is {self.k}; it must be between 1 and d_sae = {self.d_sae}.")
        require(
            self.aux_alpha >= 0,
            f"aux_alpha is {self.aux_alpha}; a negative weight would push dead features away.",
        )
        require(self.k_aux is None or self.k_aux > 0, f"k_aux is {self.k_aux}; use aux_alpha=0 to turn AuxK off.")
        require(self.dead_after > 0, f"dead_after is {self.dead_after} rows; it must be positive.")
        check_options(self.input, self.time, self.architecture)
        if self.time != "shared":
            self._check_time()
        if self.blocks is not None:
            require(
                all(isinstance(block, tuple) and len(block) == 3 for block in self.blocks),
                f"blocks are {self.blocks}; expected (site, step or None, width) of each.",
            )
            width = sum(block[2] for block in self.blocks)
            require(width == self.d_in, f"blocks have {width} values together; d_in is {self.d_in}.")
            check_crosscoder(self.input, self.time)
        sizes = self.nested
        ascending = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
        require(
            ascending and sizes[-1:] == (self.d_sae,),
            f"prefixes are {list(sizes)}; they must rise from above 0 to d_sae = {self.d_sae}.",
        )

    def _check_time(self) -> None:
        levels, groups = self.levels or (), self.groups or ()
        require(len(levels) > 0, f"time is {self.time!r}, and no levels are given: the log-SNR of every step.")
        require(all(isinstance(v, int | float) for v in levels), f"levels are {levels}; expected numbers.")
        if self.time != "per_step":
            return
        n = len(set(groups))
        require(
            len(groups) == len(levels) and set(groups) == set(range(n)),
            f"groups are {list(groups)}; expected a number for each of {len(levels)} levels, from 0 and none left out.",
        )
        require(
            self.d_sae % n == 0 and self.d_sae // n >= self.k,
            f"d_sae is {self.d_sae}; it must divide by the {n} groups of steps, with k = {self.k} features in each.",
        )

    @property
    def n_groups(self) -> int:
        """Dictionaries that share d_sae: one for each group of steps, or one."""
        return len(set(self.groups)) if self.groups else 1

    @property
    def n_aux(self) -> int:
        """Dead features that the auxiliary loss uses for a row, at most."""
        return self.k_aux if self.k_aux is not None else max(1, self.d_in // 2)

    @property
    def nested(self) -> tuple[int, ...]:
        """Sizes of the nested dictionaries of a matryoshka, ascending, the last d_sae."""
        if self.prefixes is not None:
            return self.prefixes
        return tuple(sorted({self.d_sae // n for n in _NESTED if self.d_sae >= n} | {self.d_sae}))


class Sized:
    """The sizes in a configuration, by the names that other libraries use."""

    config: SAEConfig

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.config.d_sae

    @property
    def k(self) -> int:
        """Features kept for a row, or on average, or aimed at: see the architecture."""
        return self.config.k
