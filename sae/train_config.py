"""How a dictionary is trained: which rows, which dictionary, which optimiser.

Counts that decide behaviour are in rows (one row = one vector of one sample, step, branch and token), never in batches,
so that a run means the same at any batch size and on any number of processes.
"""

from dataclasses import dataclass

from sae.config import (
    ARCHITECTURES,
    DEAD_AFTER_MAX,
    MATMULS,
    JsonConfig,
    SAEConfig,
    check_crosscoder,
    check_options,
    quiet,
    require,
)

KERNELS = ("auto", "torch", "triton")

# Numbers that must be above zero where they are given.
_POSITIVE = (
    *("d_sae", "expansion", "rows", "epochs", "k", "batch_size", "init_rows", "pool_rows", "checkpoint_rows"),
    *("log_every", "eval_rows", "lr", "clip_norm", "bandwidth", "k_aux", "dead_after", "eps"),
)


@dataclass(frozen=True)
class TrainConfig(JsonConfig):
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
    architecture: str = quiet("topk")  # see SAEConfig, as the four that follow
    sparsity: float = quiet(1.0)
    bandwidth: float = quiet(0.1)
    prefixes: tuple[int, ...] | None = quiet(None)
    matmul: str = quiet("fp32")
    row_seed: int | None = quiet(None)  # held-out samples and order of rows, where not by `seed`
    input: str = quiet("raw")  # what is done to a row first: raw, centred, unit, whitened (inputs.py)
    time: str = quiet("shared")  # how the step enters: shared, per_step, film, residual (timed.py)
    groups: tuple[tuple[int, ...], ...] | None = quiet(None)  # per_step: steps of each dictionary; None = one a step
    across_sites: tuple[str, ...] | None = quiet(None)  # crosscoder: sites read together with `site`
    across_steps: bool = quiet(False)  # crosscoder: one code for all chosen steps
    kernels: str = quiet("auto")  # sparse products on a GPU: "torch", "triton", or the faster at the start of the run

    def __post_init__(self) -> None:
        require(bool(self.site), "site is empty; name a site of the store.")
        require(
            self.architecture in ARCHITECTURES,
            f"architecture is {self.architecture!r}; expected one of {', '.join(ARCHITECTURES)}.",
        )
        require(self.matmul in MATMULS, f"matmul is {self.matmul!r}; expected one of {', '.join(MATMULS)}.")
        require(self.kernels in KERNELS, f"kernels is {self.kernels!r}; expected one of {', '.join(KERNELS)}.")
        require(
            (self.d_sae is None) != (self.expansion is None),
            f"give d_sae or expansion, not both or neither (found d_sae={self.d_sae}, expansion={self.expansion}).",
        )
        require(
            (self.rows is None) != (self.epochs is None),
            f"give rows or epochs, not both or neither (found rows={self.rows}, epochs={self.epochs}).",
        )
        for name in _POSITIVE:
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} is {value}; it must be positive.")
        require(
            self.aux_alpha >= 0,
            f"aux_alpha is {self.aux_alpha}; a negative weight would push dead features away.",
        )
        require(0 <= self.holdout < 1, f"holdout is {self.holdout}; it is a share of the samples, in [0, 1).")
        require(
            self.warmup >= 0 and self.decay >= 0,
            f"warmup {self.warmup} and decay {self.decay} cannot be negative.",
        )
        require(
            self.warmup + self.decay <= 1,
            f"warmup {self.warmup} + decay {self.decay} is more than the whole run.",
        )
        require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"betas are {self.betas}; need two in [0, 1).",
        )
        check_options(self.input, self.time, self.architecture)
        if self.is_crosscoder:
            check_crosscoder(self.input, self.time)
            sites = (self.site, *(self.across_sites or ()))
            require(len(set(sites)) == len(sites), f"a crosscoder reads {', '.join(sites)}: one is named twice.")
        require(
            self.groups is None or self.time == "per_step",
            f"groups of steps are given, and time is {self.time!r}; they belong to 'per_step'.",
        )
        for name in ("steps", "branches"):
            value = getattr(self, name)
            require(value is None or len(value) > 0, f"{name} is empty; use None for all {name}.")
            require(value is None or len(set(value)) == len(value), f"{name} are {value}: one is named twice.")

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
