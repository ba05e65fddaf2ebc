"""Loads a model that was exported for PyTorch and saves it again, as the other side of tests/pytorch.

Reads a folder that the test wrote: export.pth, and the same numbers in model.safetensors and table.safetensors. Fails
unless a network with the reference's names, buffers included, loads the export strictly and has exactly those numbers.
Writes saved.pth, as PyTorch itself writes it and without `module.` before the names.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from torch_peer import UniversalModel
from torch_swin import Attention

# A tensor that one backbone alone has, of as many numbers as its first convolution has channels.
FIRST = {
    "unet": "backbone.down_tr64.ops.0.conv1.bias",
    "swin_unetr": "backbone.swinViT.patch_embed.proj.bias",
}


def with_buffers(model, table):
    """The reference's batch norm counts, and its embeddings and the distances of its windows are in the state dict."""
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm3d):
            module.__init__(module.num_features)
        if isinstance(module, Attention):
            module.register_buffer("relative_position_index", torch.zeros_like(module.index))
    model.register_buffer("organ_embedding", torch.zeros_like(table))
    return model


def main(folder):
    # Without code of the file's own: what is exported needs none.
    net = torch.load(folder / "export.pth", map_location="cpu", weights_only=True)["net"]
    assert all(name.startswith("module.") for name in net), list(net)
    weights, table = load_file(folder / "model.safetensors"), load_file(folder / "table.safetensors")
    expected = weights | table
    backbone = next(backbone for backbone, name in FIRST.items() if name in expected)
    model = UniversalModel(backbone, expected[FIRST[backbone]].numel(), table["organ_embedding"])
    model = with_buffers(model, table["organ_embedding"])
    # Strictly: every name, and no other.
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in net.items()})
    loaded = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    for attention in [module for module in model.modules() if isinstance(module, Attention)]:
        assert torch.equal(attention.relative_position_index, attention.index)
    torch.save({"net": loaded, "epoch": 1}, folder / "saved.pth")
    print(f"{len(net)} tensors loaded, {len(expected)} compared")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
