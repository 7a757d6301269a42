"""Networks, called ``network(x, t, **conditions)``: for vectors, images, series, tokens or patches, counts, and graphs.

>>> import torch
>>> network = make_network("auto", (1, 8, 8), conditions={"label": 10})
>>> network.name, network.conditions
('unet', {'label': 10})
>>> network(torch.zeros(2, 1, 8, 8), torch.zeros(2), label=torch.tensor([3, 10])).shape
torch.Size([2, 1, 8, 8])
"""

from __future__ import annotations

from retrodict.denoisers.networks.base import Network, networks
from retrodict.denoisers.networks.count_unet import CountUNet
from retrodict.denoisers.networks.graph_transformer import GraphTransformer
from retrodict.denoisers.networks.make import make_network
from retrodict.denoisers.networks.mlp import MLP
from retrodict.denoisers.networks.transformer import Transformer
from retrodict.denoisers.networks.unet import UNet, UNet1d

__all__ = [
    "MLP",
    "CountUNet",
    "GraphTransformer",
    "Network",
    "Transformer",
    "UNet",
    "UNet1d",
    "make_network",
    "networks",
]
