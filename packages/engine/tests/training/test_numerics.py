"""Under which conditions a network is trained on which machine."""

import pytest
import torch
from torch import nn

from radfuse.engine.errors import SettingsError
from radfuse.engine.training import numerics

FLAT = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
SOLID = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
UP = nn.Sequential(nn.ConvTranspose3d(1, 2, 3))


@pytest.fixture
def processor(monkeypatch):
    """A machine without a GPU, whose processor can do what it is told to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return lambda **found: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)


@pytest.mark.parametrize(
    ("capabilities", "network", "precision"),
    [
        ({"avx512_bf16": True}, FLAT, "bf16"),
        ({"amx_bf16": True}, FLAT, "bf16"),
        ({"avx512_bf16": True}, None, "bf16"),
        ({"avx512_bf16": True}, SOLID, "32"),
        ({"avx512_bf16": True, "amx_bf16": True}, UP, "32"),
        ({"avx512": True, "avx512_bf16": False}, FLAT, "32"),
        ({}, FLAT, "32"),
    ],
)
def test_bf16_is_chosen_where_the_processor_computes_in_it_and_right(
    processor, capabilities, network, precision
):
    processor(**capabilities)
    assert numerics.choose("auto", "auto", network=network).precision == precision


@pytest.mark.parametrize("network", [SOLID, UP])
def test_bf16_is_refused_for_volumes_on_a_processor(processor, network):
    processor(avx512_bf16=True)
    with pytest.raises(SettingsError, match=r"bf16 is not for .* 3D convolutions on a CPU.*Say 32"):
        numerics.choose("cpu", "bf16", network=network)


def test_what_is_asked_for_is_what_is_taken(processor):
    processor(avx512_bf16=True)
    assert numerics.choose("cpu", "32", network=FLAT).precision == "32"
    processor()
    assert numerics.choose("cpu", "bf16", network=FLAT).precision == "bf16"
    with pytest.raises(SettingsError, match="expected a GPU for 'cuda', got none here"):
        numerics.choose("cuda", "auto")


def test_images_lie_channels_last_and_volumes_as_they_are():
    assert numerics.memory_format(FLAT) is torch.channels_last
    assert numerics.memory_format(SOLID) is torch.contiguous_format
    image = numerics.laid_out(torch.zeros(2, 3, 4, 4), torch.channels_last)
    assert image.is_contiguous(memory_format=torch.channels_last)
    volume = numerics.laid_out(torch.zeros(2, 3, 4, 4, 4), torch.contiguous_format)
    assert volume.is_contiguous()
