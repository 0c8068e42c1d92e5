"""From stored DICOM values to what they mean, and from there to what a viewer shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.dicom import number, numbers, text
from radfuse.serving.images.errors import UnreadableImage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

LOW_PERCENTILE = 0.5
HIGH_PERCENTILE = 99.5
"""Between these, a picture without window is spread: a few burnt-in letters or dead pixels do not matter."""


def modality_values(path: Path, dataset: Dataset, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored values through the Modality LUT or slope and intercept; unchanged where there is neither.

    Args:
        path: the file, for messages.
        dataset: the image, or the functional group of a frame.
        stored: stored values, any shape.

    Returns:
        Same shape; float32 where slope and intercept apply, unless both are whole and the result fits in
        int16.

    Source:
        DICOM PS3.3 section C.11.1 (Modality LUT module).
    """
    table = _look_up(path, dataset, "ModalityLUTSequence", stored)
    if table is not None:
        return table[0]
    slope = number(path, dataset, "RescaleSlope", 1.0)
    intercept = number(path, dataset, "RescaleIntercept", 0.0)
    if slope == 0:
        raise UnreadableImage(path, "RescaleSlope is 0, which makes every value the same")
    if (slope, intercept) == (1.0, 0.0):
        return stored
    small = abs(slope) < 1 << 16 and abs(intercept) < 1 << 31
    if small and slope.is_integer() and intercept.is_integer() and stored.dtype.kind in "iu":
        whole = stored.astype(np.int64) * int(slope) + int(intercept)
        info = np.iinfo(np.int16)
        if info.min <= whole.min() and whole.max() <= info.max:
            return whole.astype(np.int16)
    return (stored * slope + intercept).astype(np.float32)


def displayed(
    path: Path, dataset: Dataset, values: NDArray[Any], valid: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Values in 0..1 as a viewer shows them first: by the VOI LUT, else the first window.

    Without either, values that were stored in up to 8 bits are taken as shown, and others are spread between
    percentiles; so they are too where the window shows one flat grey, which happens when it was written for
    other values than those in the file.

    Args:
        path: the file, for messages.
        dataset: the image.
        values: what `modality_values` gave.
        valid: same shape; False where there is padding, which does not count.

    Source:
        DICOM PS3.3 section C.11.2 (VOI LUT module).
    """
    shown = _by_voi(path, dataset, values)
    if shown is not None and np.ptp(shown) > 0:
        return shown
    bits = number(path, dataset, "BitsStored", 16)
    if bits <= 8 and values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255:
        return _unit(values / (2.0**bits - 1))
    return spread(values, valid)


def spread(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Values in 0..1, linear between their 0.5th and 99.5th percentile; one flat grey stays 0.

    Args:
        values: any shape, finite.
        valid: same shape; where False, values do not count.
    """
    counted = values if valid is None or not valid.any() else values[valid]
    low, high = np.percentile(counted, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if low == high:  # nearly all is background: take what there is
        low, high = float(counted.min()), float(counted.max())
    if low == high:
        return np.zeros(values.shape, np.float32)
    return _unit((values - low) / (high - low))


def window(
    values: NDArray[Any], centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float32] | None:
    """Values in 0..1 through a window; None where the window makes no sense.

    Args:
        values: any shape.
        centre: WindowCenter (0028,1050).
        width: WindowWidth (0028,1051).
        function: VOILUTFunction (0028,1056): LINEAR, LINEAR_EXACT or SIGMOID.

    Source:
        DICOM PS3.3 sections C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2.
    """
    wide = values.astype(np.float64)
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None
    if function == "SIGMOID":
        exponent = (-4 * (wide - centre) / width).clip(-700, 700)  # beyond it exp overflows
        return _unit(1 / (1 + np.exp(exponent)))
    if function == "LINEAR_EXACT":
        return _unit((wide - centre) / width + 0.5)
    if function != "LINEAR":
        return None
    if width == 1:
        return _unit(wide > centre - 0.5)
    return _unit((wide - (centre - 0.5)) / (width - 1) + 0.5)


def _by_voi(path: Path, dataset: Dataset, values: NDArray[Any]) -> NDArray[np.float32] | None:
    table = _look_up(path, dataset, "VOILUTSequence", values)
    if table is not None:
        return _unit(table[0] / (2.0 ** table[1] - 1))
    centres, widths = numbers(path, dataset, "WindowCenter"), numbers(path, dataset, "WindowWidth")
    if not centres or not widths:
        return None
    return window(values, centres[0], widths[0], text(dataset, "VOILUTFunction").upper() or "LINEAR")


def _unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """float32, kept in 0..1."""
    kept: NDArray[np.float32] = np.clip(values, 0, 1).astype(np.float32)
    return kept


def _look_up(
    path: Path, dataset: Dataset, sequence: str, values: NDArray[Any]
) -> tuple[NDArray[np.uint16], int] | None:
    """Values through the first table of a sequence, and the bits of its entries: PS3.3 section C.11.1.1.

    None where there is no table, or an empty one.
    """
    item = (dataset.get(sequence) or [None])[0]
    if item is None or not item.get("LUTDescriptor") or not item.get("LUTData"):
        return None
    descriptor = [int(part) for part in numbers(path, item, "LUTDescriptor")]
    if len(descriptor) != 3:
        raise UnreadableImage(path, "a look-up table's LUTDescriptor has not three numbers")
    entries, first, bits = descriptor[0] & 0xFFFF or 1 << 16, descriptor[1], descriptor[2]
    if not 8 <= bits <= 16:
        raise UnreadableImage(path, f"a look-up table has entries of {bits} bits; expected 8 to 16")
    if first > 0x7FFF and values.min() < 0:
        first -= 1 << 16  # stored as US where SS was meant
    little = dataset.original_encoding[1] is not False
    table = _table(item.get("LUTData"), entries, little)
    if len(table) < entries:
        raise UnreadableImage(path, f"a look-up table has {len(table)} of {entries} entries")
    index = np.rint(values.astype(np.float64) - first).clip(0, entries - 1)
    return table[index.astype(np.int64)], bits


def _table(data: Any, entries: int, little: bool) -> NDArray[np.uint16]:
    """LUTData (0028,3006): words, or bytes where its VR is OW, and then 8-bit entries may be packed."""
    if isinstance(data, bytes):
        kind = "u1" if len(data) < 2 * entries else "<u2" if little else ">u2"
        return np.frombuffer(data, kind).astype(np.uint16)
    return np.asarray(data, np.int64).astype(np.uint16)
