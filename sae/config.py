"""What a dictionary is (`SAEConfig`) and how one is trained (`TrainConfig`): frozen, checked, JSON both ways,
hashed.

Counts that decide behaviour are in rows (one row = one vector of one sample, step, branch and token), never
in batches, so that a run means the same at any batch size and on any number of processes.

Some fields are left out of the JSON while they have their default (`_quiet`): a run that does not use such an option
keeps the name and the folder that it had before the option existed.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from sae._files import content_hash
from sae.errors import ConfigError

DEAD_AFTER_MAX = 10_000_000  # Gao et al. 2024 (arXiv 2406.04093): a latent silent for ten million tokens is dead

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu")
MATMULS = ("fp32", "bf16", "int8")
KERNELS = ("auto", "torch", "triton")
INPUTS = ("raw", "centred", "unit", "whitened")
TIMES = ("shared", "per_step", "film", "residual")
_NESTED = (16, 8, 4, 2)  # Matryoshka: the default sizes are d_sae divided by these, and d_sae

# Numbers of a TrainConfig that must be above zero where they are given.
_POSITIVE = (
    *("d_sae", "expansion", "rows", "epochs", "k", "batch_size", "init_rows", "pool_rows", "checkpoint_rows"),
    *("log_every", "eval_rows", "lr", "clip_norm", "bandwidth", "k_aux", "dead_after", "eps"),
)


def _quiet(default: Any) -> Any:
    """A field that is left out of the JSON while it has its default."""
    return field(default=default, metadata={"quiet": True})


class _Config:
    """JSON round trip and content hash, shared by the two configurations."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values (tuples become lists)."""
        values = asdict(self)  # type: ignore[call-overload]
        quiet = {f.name: f.default for f in fields(self) if f.metadata.get("quiet")}  # type: ignore[arg-type]
        kept = {k: v for k, v in values.items() if k not in quiet or v != quiet[k]}
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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_options(input: str, time: str, architecture: str) -> None:
    _require(input in INPUTS, f"input is {input!r}; expected one of {', '.join(INPUTS)}.")
    _require(time in TIMES, f"time is {time!r}; expected one of {', '.join(TIMES)}.")
    _require(
        (input, time) != ("unit", "film"),
        "input 'unit' with time 'film': the shift of film would have to grow with every row's length. Choose another.",
    )
    _require(
        (time, architecture) != ("film", "relu"),
        "time 'film' with architecture 'relu': the gain of film would shrink the codes that the L1 penalty counts, and "
        "the decoder undo it. Choose another.",
    )


def _check_crosscoder(input: str, time: str) -> None:
    _require(
        input == "raw" and time == "shared",
        f"input is {input!r} and time {time!r}: a crosscoder normalises each of its blocks and reads steps as blocks, "
        "so it takes input 'raw' and time 'shared' only.",
    )


@dataclass(frozen=True)
class SAEConfig(_Config):
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
    sparsity: float = _quiet(1.0)  # jumprelu, relu: weight of the sparsity term
    bandwidth: float = _quiet(0.1)  # jumprelu: width of the smoothed step, in units of s x
    prefixes: tuple[int, ...] | None = _quiet(None)  # matryoshka: sizes m_j; None = d_sae / 16, / 8, / 4, / 2, all
    matmul: str = _quiet("fp32")  # encoder product in training: "bf16" or "int8" choose coarsely, values stay exact
    input: str = _quiet("raw")  # what is done to a row first, one of INPUTS (inputs.py)
    time: str = _quiet("shared")  # how the denoising step enters, one of TIMES (timed.py)
    levels: tuple[float, ...] | None = _quiet(None)  # log-SNR of the steps it was trained on; only where time needs it
    groups: tuple[int, ...] | None = _quiet(None)  # per_step: which dictionary, from 0, reads each level
    blocks: tuple[tuple[str, int | None, int], ...] | None = _quiet(None)  # crosscoder: (site, step or None, width)

    def __post_init__(self) -> None:
        _require(
            self.architecture in ARCHITECTURES,
            f"architecture is {self.architecture!r}; expected one of {', '.join(ARCHITECTURES)}.",
        )
        _require(self.matmul in MATMULS, f"matmul is {self.matmul!r}; expected one of {', '.join(MATMULS)}.")
        _require(
            self.sparsity >= 0,
            f"sparsity is {self.sparsity}; a negative weight would reward features for being on.",
        )
        _require(self.bandwidth > 0, f"bandwidth is {self.bandwidth}; it must be positive.")
        for name in ("d_in", "d_sae", "k", "dead_after"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole, f"{name} is {value!r}; it must be a whole number.")
        _require(self.d_in > 0, f"d_in is {self.d_in}; a row has at least one value.")
        _require(self.d_sae > 0, f"d_sae is {self.d_sae}; a dictionary has at least one feature.")
        _require(0 < self.k <= self.d_sae, f"k is {self.k}; it must be between 1 and d_sae = {self.d_sae}.")
        _require(
            self.aux_alpha >= 0,
            f"aux_alpha is {self.aux_alpha}; a negative weight would push dead features away.",
        )
        _require(self.k_aux is None or self.k_aux > 0, f"k_aux is {self.k_aux}; use aux_alpha=0 to turn AuxK off.")
        _require(self.dead_after > 0, f"dead_after is {self.dead_after} rows; it must be positive.")
        _check_options(self.input, self.time, self.architecture)
        if self.time != "shared":
            self._check_time()
        if self.blocks is not None:
            _require(
                all(isinstance(block, tuple) and len(block) == 3 for block in self.blocks),
                f"blocks are {self.blocks}; expected (site, step or None, width) of each.",
            )
            width = sum(block[2] for block in self.blocks)
            _require(width == self.d_in, f"blocks have {width} values together; d_in is {self.d_in}.")
            _check_crosscoder(self.input, self.time)
        sizes = self.nested
        ascending = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
        _require(
            ascending and sizes[-1:] == (self.d_sae,),
            f"prefixes are {list(sizes)}; they must rise from above 0 to d_sae = {self.d_sae}.",
        )

    def _check_time(self) -> None:
        levels, groups = self.levels or (), self.groups or ()
        _require(len(levels) > 0, f"time is {self.time!r}, and no levels are given: the log-SNR of every step.")
        _require(all(isinstance(v, int | float) for v in levels), f"levels are {levels}; expected numbers.")
        if self.time != "per_step":
            return
        n = len(set(groups))
        _require(
            len(groups) == len(levels) and set(groups) == set(range(n)),
            f"groups are {list(groups)}; expected a number for each of {len(levels)} levels, from 0 and none left out.",
        )
        _require(
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


@dataclass(frozen=True)
class TrainConfig(_Config):
    """One training run: which rows, which dictionary, which optimiser. Give `d_sae` or `expansion`, and
    `rows` or `epochs`.
    """

    site: str  # site to train on
    d_sae: int | None = None  # number of features
    expansion: int | None = None  # or: number of features as a multiple of the site's width
    k: int = 16  # features kept for a row; the fewest with less than 1 % dead in `benchmarks/sae_sweep.py`
    rows: int | None = None  # rows to train on
    epochs: float | None = None  # or: passes over the chosen rows
    batch_size: int = 4096  # rows a step
    lr: float | None = None  # peak learning rate; None = 8e-4 / sqrt(d_sae / 2^14)
    warmup: float = 0.05  # first part of the run, with the rate rising from 0
    decay: float = 0.2  # last part of the run, with the rate falling to 0
    betas: tuple[float, float] = (0.9, 0.999)  # Adam
    eps: float = 6.25e-10  # Adam; small because gradients of a normalised loss are small (Gao et al. 2024)
    clip_norm: float | None = 1.0  # global gradient norm; None = no clipping
    aux_alpha: float = 1 / 32  # see SAEConfig
    k_aux: int | None = None  # see SAEConfig
    dead_after: int | None = None  # see SAEConfig; None = 10 M rows or a tenth of the run, whichever is less
    input_scale: bool = True  # see SAEConfig
    steps: tuple[int, ...] | None = None  # denoising steps to use; None = all
    branches: tuple[str, ...] | None = None  # guidance branches to use; None = all
    holdout: float = 0.05  # share of the samples kept out of training, for the metrics
    seed: int = 0  # decides initial weights, held-out samples and the order of rows
    init_rows: int = 32_768  # rows, spread over the store, that set the pre-bias and the input scale
    pool_rows: int = 65_536  # rows in the loader's shuffling pool
    checkpoint_rows: int = 2_000_000  # rows between checkpoints
    log_every: int = 50  # steps between progress reports
    eval_rows: int = 1_000_000  # rows for the metrics at the end, at most
    architecture: str = _quiet("topk")  # see SAEConfig, as the four that follow
    sparsity: float = _quiet(1.0)
    bandwidth: float = _quiet(0.1)
    prefixes: tuple[int, ...] | None = _quiet(None)
    matmul: str = _quiet("fp32")
    row_seed: int | None = _quiet(None)  # held-out samples and order of rows, where not by `seed`
    input: str = _quiet("raw")  # what is done to a row first: raw, centred, unit, whitened (inputs.py)
    time: str = _quiet("shared")  # how the step enters: shared, per_step, film, residual (timed.py)
    groups: tuple[tuple[int, ...], ...] | None = _quiet(None)  # per_step: steps of each dictionary; None = one a step
    across_sites: tuple[str, ...] | None = _quiet(None)  # crosscoder: sites read together with `site`
    across_steps: bool = _quiet(False)  # crosscoder: one code for all chosen steps
    kernels: str = _quiet("auto")  # sparse products on a GPU: "torch", "triton", or the faster at the start of the run

    def __post_init__(self) -> None:
        _require(bool(self.site), "site is empty; name a site of the store.")
        _require(
            self.architecture in ARCHITECTURES,
            f"architecture is {self.architecture!r}; expected one of {', '.join(ARCHITECTURES)}.",
        )
        _require(self.matmul in MATMULS, f"matmul is {self.matmul!r}; expected one of {', '.join(MATMULS)}.")
        _require(self.kernels in KERNELS, f"kernels is {self.kernels!r}; expected one of {', '.join(KERNELS)}.")
        _require(
            (self.d_sae is None) != (self.expansion is None),
            f"give d_sae or expansion, not both or neither (found d_sae={self.d_sae}, expansion={self.expansion}).",
        )
        _require(
            (self.rows is None) != (self.epochs is None),
            f"give rows or epochs, not both or neither (found rows={self.rows}, epochs={self.epochs}).",
        )
        for name in _POSITIVE:
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} is {value}; it must be positive.")
        _require(
            self.aux_alpha >= 0,
            f"aux_alpha is {self.aux_alpha}; a negative weight would push dead features away.",
        )
        _require(0 <= self.holdout < 1, f"holdout is {self.holdout}; it is a share of the samples, in [0, 1).")
        _require(
            self.warmup >= 0 and self.decay >= 0,
            f"warmup {self.warmup} and decay {self.decay} cannot be negative.",
        )
        _require(
            self.warmup + self.decay <= 1,
            f"warmup {self.warmup} + decay {self.decay} is more than the whole run.",
        )
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"betas are {self.betas}; need two in [0, 1).",
        )
        _check_options(self.input, self.time, self.architecture)
        if self.is_crosscoder:
            _check_crosscoder(self.input, self.time)
            sites = (self.site, *(self.across_sites or ()))
            _require(len(set(sites)) == len(sites), f"a crosscoder reads {', '.join(sites)}: one is named twice.")
        _require(
            self.groups is None or self.time == "per_step",
            f"groups of steps are given, and time is {self.time!r}; they belong to 'per_step'.",
        )
        for name in ("steps", "branches"):
            value = getattr(self, name)
            _require(value is None or len(value) > 0, f"{name} is empty; use None for all {name}.")
            _require(value is None or len(set(value)) == len(value), f"{name} are {value}: one is named twice.")

    @property
    def is_crosscoder(self) -> bool:
        """True if rows of several sites or steps share one code."""
        return bool(self.across_sites) or self.across_steps

    @property
    def order_seed(self) -> int:
        """What decides the held-out samples and the order of rows."""
        return self.seed if self.row_seed is None else self.row_seed

    def n_batches(self, rows_per_epoch: int) -> int:
        """Steps of the run, given how many rows one pass over the chosen data has."""
        rows = self.rows if self.rows is not None else (self.epochs or 0.0) * rows_per_epoch
        return max(1, round(rows / self.batch_size))

    def sae_config(self, d_in: int, rows_per_epoch: int) -> SAEConfig:
        """The dictionary of this run for rows of width `d_in`."""
        rows = self.n_batches(rows_per_epoch) * self.batch_size
        return SAEConfig(
            d_in=d_in,
            d_sae=self.d_sae if self.d_sae is not None else d_in * (self.expansion or 0),
            k=self.k,
            site=self.site,
            aux_alpha=self.aux_alpha,
            k_aux=self.k_aux,
            # A short run would end before ten million rows have passed, and AuxK would never act.
            dead_after=self.dead_after or max(self.batch_size, min(DEAD_AFTER_MAX, rows // 10)),
            input_scale=self.input_scale,
            architecture=self.architecture,
            sparsity=self.sparsity,
            bandwidth=self.bandwidth,
            prefixes=self.prefixes,
            matmul=self.matmul,
            input=self.input,
        )

    def peak_lr(self, d_sae: int) -> float:
        """Peak learning rate: the one given, or 8e-4 / sqrt(d_sae / 2^14).

        The exponent is of Gao et al. 2024, and holds on canvas. Their constant, 2e-4, is of far longer runs: of the
        multiples tried by `benchmarks/sae_sweep.py`, in runs of 50 to 800 steps, four is the largest with
        less than 1 % dead features at every width.
        """
        return self.lr if self.lr is not None else 8e-4 / (d_sae / 2**14) ** 0.5

    def lr_factor(self, batch: int, n_batches: int) -> float:
        """Share of the peak rate at step `batch` of `n_batches`: linear rise, plateau, linear fall to
        (almost) 0.
        """
        done = (batch + 1) / n_batches
        rise = min(1.0, done / self.warmup) if self.warmup > 0 else 1.0
        fall = min(1.0, (n_batches - batch) / (n_batches * self.decay)) if self.decay > 0 else 1.0
        return min(rise, fall)
