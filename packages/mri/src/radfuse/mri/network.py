"""The 3D U-Net and its parts by name."""

from __future__ import annotations

from typing import cast

from torch import nn

CHANNELS = (32, 64, 128, 256, 512)


def unet(inputs: int, outputs: int, dropout: float) -> nn.Module:
    """A residual U-Net of five levels: 19.23 million parameters with four channels in and out.

    Volumes are halved four times, so their sides are multiples of 16.

    Args:
        inputs: MR sequences.
        outputs: classes, the background included.
        dropout: in every block; 0 for none.

    Source: Kerfoot et al., Left-Ventricle Quantification Using Residual U-Net, STACOM 2018.
    """
    from monai.networks.nets import UNet

    network = UNet(
        spatial_dims=3,
        in_channels=inputs,
        out_channels=outputs,
        channels=CHANNELS,
        strides=(2,) * (len(CHANNELS) - 1),
        num_res_units=2,
        dropout=dropout,
    )
    return cast(nn.Module, network)


def layer_groups(network: nn.Module) -> dict[str, list[nn.Module]]:
    """``encoder1`` to ``encoder4``, ``bottom``, ``decoder4`` to ``decoder1``: from input to output."""
    encoders: dict[str, list[nn.Module]] = {}
    decoders: dict[str, list[nn.Module]] = {}
    level = cast(nn.Module, network.model)
    # Every level is a sequence of a way down, a skip connection around the next level, and a way up.
    for number in range(1, len(CHANNELS)):
        down, skip, up = cast(nn.Sequential, level)
        encoders[f"encoder{number}"], decoders[f"decoder{number}"] = [down], [up]
        level = cast(nn.Module, skip.submodule)
    return {**encoders, "bottom": [level], **dict(reversed(decoders.items()))}
