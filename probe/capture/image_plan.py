"""A collection from real images: each is brought to chosen noise levels, and the denoiser called once at each.

``noise`` adds noise as the model's forward process does, x = signal x0 + noise n, with one n an image at all its
levels, so that levels of one image differ in nothing but the level. ``invert`` follows the model's own
deterministic path from the image to noise (DDIM inversion, Song et al. 2021, https://arxiv.org/abs/2010.02502), so
that the x at a level is one from which the model draws the image, nearly.

The steps of the store are the levels, most noise first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from probe.capture.image_files import ImageSet
from probe.capture.recording import Recording
from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidPlan
from probe.model.fingerprint import model_name
from probe.model.pipeline import Pipeline
from probe.model.schedule import noise_levels

MODES = ("noise", "invert")
GUIDED = 2.0
"""Any guidance scale at which pipelines run both branches; a single denoiser call does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class ImagePlan(Recording):
    """A collection of real images. The fields that every plan has are those of ``Recording``.

    Attributes:
        folder: where the files lie on this machine; no part of the plan's hash.
        files: image files, relative to the folder, one a sample.
        sha256: of each file.
        masks: mask file of each sample, relative to the folder, or "" for none.
        log_snr: noise levels, ascending (most noise first); the nearest ones of the model's schedule are used.
        mode: ``noise`` or ``invert``.
        inversion_steps: steps of the path from the image to pure noise; the levels are added to them.
    """

    folder: str
    files: tuple[str, ...]
    sha256: tuple[str, ...]
    masks: tuple[str, ...]
    log_snr: tuple[float, ...]
    mode: str = "noise"
    inversion_steps: int = 50
    branches: tuple[str, ...] = ("cond",)

    SAMPLE_FIELDS: ClassVar[tuple[str, ...]] = ("prompts", "seeds", "labels", "files", "sha256", "masks")
    PLACE_FIELDS: ClassVar[tuple[str, ...]] = ("folder",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("files", "sha256", "masks"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != self.n_samples:
                raise InvalidPlan(f"plan: {self.n_samples} prompts but {len(values)} {name}; give one a sample.")
        levels = tuple(float(level) for level in self.log_snr)
        if not levels or any(level != level for level in levels) or len(set(levels)) != len(levels):
            raise InvalidPlan(f"plan: log_snr {levels!r}; expected different numbers, at least one, such as -4 0 4.")
        object.__setattr__(self, "log_snr", tuple(sorted(levels)))
        if self.mode not in MODES:
            raise InvalidPlan(f"plan: mode {self.mode!r}; expected {' or '.join(MODES)}.")
        self._check_counts("inversion_steps")

    @classmethod
    def for_pipeline(
        cls,
        pipe: Pipeline,
        sites: str | Site | Iterable[str | Site],
        source: ImageSet,
        log_snr: Sequence[float],
        *,
        first_seed: int = 0,
        **options: Any,
    ) -> ImagePlan:
        """A plan with site names completed.

        Args:
            pipe: the pipeline that will be run.
            sites: site names as people type them (see ``resolve_sites``).
            source: the images, from ``read_images``.
            log_snr: noise levels, in any order.
            first_seed: seed of the first image's noise; the others count up.
            **options: ``mode``, ``inversion_steps`` and the fields of ``Recording``.

        Raises:
            InvalidRequest: the model's schedule does not reach a level.
        """
        noise_levels(pipe.scheduler, log_snr)
        n = len(source.files)
        return cls(
            model=model_name(pipe),
            sites=tuple(str(site) for site in resolve_sites(pipe, sites)),
            prompts=source.prompts,
            seeds=tuple(range(first_seed, first_seed + n)),
            labels=source.labels,
            folder=str(source.folder),
            files=source.files,
            sha256=source.sha256,
            masks=source.masks,
            log_snr=tuple(log_snr),
            **options,
        )

    @property
    def guidance(self) -> float:
        """A guidance scale at which the pipeline computes the plan's branches."""
        return GUIDED if "uncond" in self.branches else 1.0

    def columns(self) -> dict[str, tuple[str, ...]]:
        """The source file of each sample, and its mask in the store's ``masks`` folder ("" for none)."""
        names = tuple(f"{i:06d}.png" if mask else "" for i, mask in enumerate(self.masks))
        return {"file": self.files, "mask": names}
