"""denoscope sites: the names that can be recorded, with the shapes that recording them finds."""

from __future__ import annotations

import pytest
import torch
from tiny_transformers import tiny_sd3_transformer

from apps.cli import main
from apps.commands.sites import is_block
from probe.capture import CapturePlan, list_sites, store_spec
from probe.capture.tensors import to_rows
from probe.errors import UnsupportedSite


def test_what_is_listed_can_be_recorded_and_has_that_shape(tiny_pipe):
    found = {str(each.site): each.shape for each in list_sites(tiny_pipe, "a red star", guidance=2.0)}
    assert {"unet.mid_block:out", "unet.up_blocks.0.attentions.0:out", "unet.conv_in:out"} <= set(found)
    plan = CapturePlan.for_pipeline(tiny_pipe, list(found), ["a red star"], steps=2, guidance=2.0, images=False)
    spec = store_spec(tiny_pipe, plan)
    assert {s.name: (s.tokens, s.channels, s.grid) for s in spec.sites} == {
        name: (f.tokens, f.channels, f.grid) for name, f in found.items()
    }
    assert "unet.down_blocks:out" not in found  # a list of blocks that does not run itself
    assert not tiny_pipe.unet.mid_block._forward_hooks and not tiny_pipe.unet._forward_pre_hooks


def test_blocks_are_named_or_numbered():
    for path in ("unet.mid_block", "unet.up_blocks.1", "unet.up_blocks.1.attentions.0", "transformer.layers.3"):
        assert is_block(path)
    for path in ("unet.conv_in", "unet.up_blocks.1.attentions.0.norm", "t.transformer_blocks.0.ff.net.0"):
        assert not is_block(path)


def test_the_command_lists_blocks_or_everything(tiny_folder, capsys):
    assert main(["sites", "--model", str(tiny_folder)]) == 0
    blocks = capsys.readouterr().out
    assert "mid_block " in blocks and "16 x 16" in blocks and "4x4" in blocks and "conv_in" not in blocks
    assert max(map(len, blocks.splitlines())) <= 100
    assert main(["sites", "conv_*", "--every", "--model", str(tiny_folder)]) == 0
    assert "conv_in" in capsys.readouterr().out
    assert main(["sites", "nothing*", "--model", str(tiny_folder)]) == 2
    assert "no site of this model is named 'nothing*'" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["mid_block", "mid_block.*"])
def test_patterns_choose(tiny_pipe, pattern):
    names = [each.site.path for each in list_sites(tiny_pipe, "a red star", pattern=pattern)]
    assert names and all(name.startswith("unet.mid_block") for name in names)
    assert ("unet.mid_block" in names) == (pattern == "mid_block")


@pytest.mark.parametrize(("norm", "before"), [("norm_q", "to_q"), ("norm_added_k", "add_k_proj")])
def test_heads_apart_are_no_map(norm, before):
    """The tensor is (batch, heads, tokens, channels of a head), which looks like a picture with heads for channels."""
    model = tiny_sd3_transformer(num_layers=1, sample_size=8, patch_size=2, qk_norm="rms_norm")
    seen: dict[str, torch.Tensor] = {}
    for name in (norm, before):
        part = model.get_submodule(f"transformer_blocks.0.attn.{name}")
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    text = torch.zeros(2, 5, 16)
    model(torch.zeros(2, 4, 8, 8), encoder_hidden_states=text, pooled_projections=text[:, 0], timestep=torch.ones(2))
    assert seen[norm].ndim == 4
    with pytest.raises(UnsupportedSite, match=f"heads apart.*attn.{before}:out"):
        to_rows(f"transformer.transformer_blocks.0.attn.{norm}:out", seen[norm])
    rows = to_rows(f"transformer.transformer_blocks.0.attn.{before}:out", seen[before])
    assert rows.shape == (2, seen[norm].shape[2], 2 * 8)
