"""UCE: rewrite the cross-attention's keys and values in closed form (Gandikota et al. 2024, arXiv 2308.14761).

Each key and value matrix W0 of the cross-attention reads text embeddings c. Those of erased concepts are to give what
W0 gives for a guide, those of retained concepts what they gave:

    W = argmin_W  sum_e s_e |W c_e - W0 g_e|^2 + sum_r s_r |W c_r - W0 c_r|^2 + lambda |W - W0|^2
      = W0 (lambda I + sum_e s_e g_e c_e^T + sum_r s_r c_r c_r^T)
           (lambda I + sum_e s_e c_e c_e^T + sum_r s_r c_r c_r^T)^-1

so one matrix moves the embeddings that all layers read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from probe.errors import InvalidRequest, UnsupportedPipeline
from probe.interventions.intervention import Intervention
from probe.interventions.patching import Replace
from probe.model.generate import model_label
from probe.model.pipeline import Pipeline
from probe.model.steps import denoiser
from probe.unlearning.tokens import concept_embedding


def uce(
    pipe: Pipeline,
    erase: Sequence[str],
    guide: str,
    retain: Sequence[str] = (),
    *,
    lam: float = 0.5,
    erase_scale: float = 1.0,
    retain_scale: float = 1.0,
    tokens: str = "last",
) -> tuple[Intervention, ...]:
    """The edit that erases phrases. Under a second: one solve of a matrix as wide as the text embedding.

    Args:
        pipe: the pipeline.
        erase: phrases of the concept, such as ("star",).
        guide: the phrase whose keys and values they get, such as "thing".
        retain: phrases that must keep theirs.
        lam: weight of staying near W0; 0.5 in the paper.
        erase_scale, retain_scale: s_e and s_r.
        tokens: which tokens stand for a phrase, see ``concept_embedding``.

    Returns:
        One weight edit for each key and value projection of the cross-attention.
    """
    if not erase or not lam > 0 or min(erase_scale, retain_scale) < 0:
        raise InvalidRequest("uce: expected at least one phrase to erase, lam above 0 and scales of at least 0.")
    g = concept_embedding(pipe, guide, tokens).double()
    pairs = [(concept_embedding(pipe, phrase, tokens).double(), g, erase_scale) for phrase in erase]
    kept = [concept_embedding(pipe, phrase, tokens).double() for phrase in retain]
    pairs += [(c, c, retain_scale) for c in kept]
    width = g.shape[1]
    gram = lam * torch.eye(width, dtype=torch.float64)
    to_guide = lam * torch.eye(width, dtype=torch.float64)
    for c, v, scale in pairs:
        n = min(len(c), len(v))  # phrases of different length: pair them from their last token on
        to_guide += scale * v[:n].T @ c[:n]
        gram += scale * c[:n].T @ c[:n]
    move = torch.linalg.solve(gram, to_guide, left=False)  # W = W0 move, the same for every layer
    edits = []
    for path, weight in cross_attention_weights(pipe, ("to_k", "to_v")).items():
        edits.append(Intervention(f"{path}:weight", Replace((weight.double() @ move).float())))
    return tuple(edits)


def cross_attention_weights(pipe: Pipeline, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Weights of the cross-attention (``attn2``) by path, for layers of these names.

    Raises:
        UnsupportedPipeline: the denoiser has no layers of this kind.
    """
    root, module = denoiser(pipe)
    found = {
        f"{root}.{name}": layer.weight
        for name, layer in module.named_modules()
        if "attn2" in name.split(".") and any(name.endswith(f".{part}") for part in names)
        if isinstance(layer, torch.nn.Linear)
    }
    if not found:
        raise UnsupportedPipeline(f"{model_label(pipe)}: its {root} has no cross-attention layers named attn2.")
    return found
