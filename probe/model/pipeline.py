"""The type of a pipeline."""

from typing import Any, TypeAlias

Pipeline: TypeAlias = Any
"""A diffusers pipeline.

Diffusers gives its pipelines their attributes (``unet``, ``scheduler``, ...) and call signatures at run time, from
configuration, so a static type cannot describe them; what is needed of one is checked where it is used.
"""
