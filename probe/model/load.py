"""Load a pipeline by name, folder or hub id, without running code that came with the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import HFValidationError
from transformers.utils import logging as transformers_logging

from probe.errors import ModelNotFound, UnsupportedPipeline
from probe.model.pipeline import Pipeline


def load_pipeline(
    name_or_folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Pipeline:
    """Load a diffusers pipeline.

    Args:
        name_or_folder: ``"canvas"`` for the embedded model, a folder written by ``save_pretrained``, or a hub
            id such as ``"stable-diffusion-v1-5/stable-diffusion-v1-5"``. A folder is read without any network
            access.
        dtype: floating-point type of the weights in memory. fp16 files are for storage: on a CPU use float32
            or bfloat16.
        device: where the pipeline goes.

    Returns:
        The pipeline, in evaluation mode. Only safetensors weights are read and no remote code is run.

    Raises:
        ModelNotFound: nothing is there, or the folder holds no pipeline, or its weights are not safetensors.
        UnsupportedPipeline: the folder asks for a pipeline class that this version of diffusers does not
            know.
    """
    name = str(name_or_folder)
    folder = _canvas_folder() if name == "canvas" else Path(name).expanduser()
    is_local = folder.is_dir()
    if is_local and not (folder / "model_index.json").is_file():
        raise ModelNotFound(
            f"load_pipeline: {_shown(name, folder)} has no model_index.json, so it is not a pipeline folder. "
            "Give the folder that DiffusionPipeline.save_pretrained wrote"
            + (" or train the embedded model: python -m probe.canvas.train" if name == "canvas" else "")
            + "."
        )
    if not is_local and _looks_like_a_path(name):
        raise ModelNotFound(
            f"load_pipeline: there is no folder {name!r}. Expected 'canvas', an existing pipeline folder, or "
            "a hub id of the form 'owner/name'. Check the path, or download the model first and give its folder."
        )
    try:
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(
                str(folder) if is_local else name,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=is_local,
            )
    except (
        OSError,
        HFValidationError,
    ) as error:  # missing files, refused downloads, weights in another format
        raise ModelNotFound(
            f"load_pipeline: cannot load {_shown(name, folder)}: {_first_line(error)} "
            "Expected 'canvas', a pipeline folder with safetensors weights, or a hub id that can be reached. "
            "To convert other weights: load them once with diffusers and call save_pretrained(folder, "
            "safe_serialization=True)."
        ) from error
    except (AttributeError, ValueError) as error:
        raise UnsupportedPipeline(
            f"load_pipeline: {_shown(name, folder)} does not describe a pipeline that this diffusers can "
            f"build: {_first_line(error)} Check model_index.json, or update diffusers."
        ) from error
    pipe.to(device)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
            component.requires_grad_(False)
            # Convolutions are faster so (1.3 times on canvas), and a map seen as rows of tokens is a view.
            component.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return pipe


def _canvas_folder() -> Path:
    """The embedded model's folder; raises where this checkout has none."""
    try:
        from probe.canvas import MODEL_DIR
    except ImportError as error:
        raise ModelNotFound(
            "load_pipeline: the embedded model 'canvas' is not part of this installation "
            f"({_first_line(error)}) Train it with: python -m probe.canvas.train"
        ) from error
    folder = Path(MODEL_DIR)
    if not folder.is_dir():
        raise ModelNotFound(
            "load_pipeline: the embedded model 'canvas' has no weights in this installation. "
            "Train it with: python -m probe.canvas.train"
        )
    return folder


def _looks_like_a_path(name: str) -> bool:
    """Whether a name that is not a folder can only have been meant as one (a hub id is ``owner/name``)."""
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name or Path(name).is_file()


def _shown(name: str, folder: Path) -> str:
    return f"'canvas' ({folder.name})" if name == "canvas" else repr(name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else text + "."


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch the loaders' progress bars and remarks off, and back to what they were.

    Diffusers remarks on every component that is not of the pipeline's usual class, such as a tiny autoencoder.
    """
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    switches = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in switches:
        log.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        for log in switches:
            log.enable_progress_bar()
