"""Opening a DICOM file and decoding its pixels, with every size checked before memory is taken."""

from __future__ import annotations

import math
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from radfuse.serving.images.codestream import PictureSize, check_codestream
from radfuse.serving.images.errors import UnreadableImage, guarded
from radfuse.serving.images.formats import Format, format_of
from radfuse.serving.images.limits import MAX_FILE_BYTES, check_picture, check_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_SAYS_DEFLATED = re.compile(rb"\x02\x00\x10\x00UI.." + re.escape(_DEFLATED), re.DOTALL)
"""TransferSyntaxUID (0002,0010) of a deflated file."""
_META_BYTES = 1 << 20
"""Where the file meta information is; usual ones have some hundred bytes."""
_EXPLICIT = b"1.2.840.10008.1.2.1\0\0\0"
"""Explicit VR Little Endian, padded to the length of the deflated one."""
_RLE = "1.2.840.10008.1.2.5"
MODALITIES = frozenset((
    "ANN", "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "CTPROTOCOL", "DG", "DMS", "DOC",
    "DR", "DX", "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT",
    "IVUS", "KER", "KO", "LEN", "LS", "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPTBSV",
    "OPTENF", "OPV", "OSS", "OT", "PA", "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG",
    "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SC",
    "SEG", "SM", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "TG", "US", "VA", "XA", "XAPROTOCOL", "XC",
))  # fmt: skip
"""Defined terms of Modality (0008,0060), and DR and SC, which files have though they are none.

Source: DICOM PS3.3 section C.7.3.1.1.1.
"""


def open_dicom(path: Path, *, pixels: bool = True) -> Dataset:
    """The data set of a DICOM file, with or without preamble.

    Args:
        path: a file of any transfer syntax.
        pixels: read the pixel data too.

    Raises:
        UnreadableImage: it is no DICOM file, is damaged, or exceeds a limit.

    Source:
        DICOM PS3.10 section 7.1 (preamble and file meta information); PS3.5 annex A.5 (deflated).
    """
    if format_of(path) is not Format.DICOM:
        raise UnreadableImage(path, "expected a DICOM file, got another format")
    with guarded(path, "the DICOM data set cannot be parsed"):
        from pydicom import dcmread

        with open(path, "rb") as file:
            deflated = _SAYS_DEFLATED.search(file.read(_META_BYTES)) is not None
        source = BytesIO(_inflated(path, path.read_bytes())) if deflated else path
        # A file without preamble was told from its first element, so it may be parsed by force.
        dataset = dcmread(source, force=True, stop_before_pixels=not pixels)
        if not len(dataset):
            raise UnreadableImage(
                path, "there is nothing after the DICOM header; copy it again from its origin"
            )
        return dataset


def decode(path: Path, dataset: Dataset, index: int = 0) -> NDArray[Any]:
    """Stored values of one frame: (rows, columns), or (rows, columns, 3) for colour, which comes as RGB.

    Bits above BitsStored, where old files keep overlays, are taken out.

    Args:
        path: the file, for messages.
        dataset: what `open_dicom` gave for it.
        index: the frame, from 0.

    Raises:
        UnreadableImage: no pixel data, an unknown transfer syntax, damage, or sizes that contradict one
            another.

    Source:
        DICOM PS3.5 section 8 (encoding of pixel data).
    """
    expected = _picture_size(path, dataset)
    with guarded(path, "the pixel data cannot be decoded"):
        from pydicom.pixels import pixel_array

        syntax = _transfer_syntax(path, dataset)
        codestream = syntax.is_encapsulated and syntax != _RLE
        if codestream:
            check_codestream(path, _frame(dataset, index), expected)
        elif not syntax.is_encapsulated:
            _check_length(path, dataset, expected)
        array = pixel_array(dataset, index=index, decoding_plugin=_plugin(path, syntax))
        shape = (expected.height, expected.width)
        if array.shape not in (shape, (*shape, 3)):
            raise UnreadableImage(
                path, f"expected one frame of {shape} pixels, the decoder gave {array.shape}"
            )
        return array if codestream else _stored_bits(dataset, array)


def frames_of(path: Path, dataset: Dataset) -> int:
    """NumberOfFrames (0028,0008), 1 where it is absent."""
    return integer(path, dataset, "NumberOfFrames", default=1)


def integer(path: Path, dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """A tag's whole number; the default where the tag is absent or empty.

    Raises:
        UnreadableImage: there is no number and no default.
    """
    value = number(path, dataset, keyword, None if default is None else float(default))
    if value != int(value):
        raise UnreadableImage(path, f"{keyword} is no whole number")
    return int(value)


def number(path: Path, dataset: Dataset, keyword: str, default: float | None = None) -> float:
    """A tag's number, the first one where it has several; the default where the tag is absent or empty.

    Raises:
        UnreadableImage: there is no finite number and no default.
    """
    values = numbers(path, dataset, keyword)
    if values:
        return values[0]
    if default is None:
        raise UnreadableImage(path, f"{keyword} is missing; ask for the file as the scanner wrote it")
    return default


def numbers(path: Path, dataset: Dataset, keyword: str) -> list[float]:
    """All numbers of a tag; none where it is absent or empty.

    Raises:
        UnreadableImage: a value is no finite number.
    """
    with guarded(path, f"{keyword} cannot be read"):
        value = dataset.get(keyword)
        if value is None or value == "":
            return []
        several = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
        found = [float(each) for each in several]
    if not all(map(math.isfinite, found)):
        raise UnreadableImage(path, f"{keyword} is not finite")
    return found


def text(dataset: Dataset, keyword: str) -> str:
    """A tag's text without padding; empty where it is absent, unreadable or not printable."""
    try:
        value = str(dataset.get(keyword) or "")
    except Exception:  # pydicom parses a value when it is asked for, and raises what the value provokes
        return ""
    cleaned = value.strip(" \0")
    return cleaned[:64] if cleaned.isprintable() else ""


def modality_of(dataset: Dataset) -> str:
    """Modality (0008,0060), empty where it is absent; "another modality" for what is none of `MODALITIES`.

    That may be any text, even a name, so it must not be repeated.
    """
    value = text(dataset, "Modality")
    return value if value in MODALITIES or not value else "another modality"


def _inflated(path: Path, content: bytes) -> bytes:
    """A deflated file with its data set inflated and its transfer syntax said to be so.

    pydicom would inflate without a limit.
    """
    # The group length, (0002,0000) UL, is the first element after the prefix.
    if content[128:138] != b"DICM\x02\x00\x00\x00UL":
        raise UnreadableImage(path, "the file meta information of a deflated file lacks its group length")
    start = 144 + int.from_bytes(content[140:144], "little")
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    inflated = inflater.decompress(content[start:], MAX_FILE_BYTES // 4)
    if inflater.unconsumed_tail:
        raise UnreadableImage(path, "the file inflates to more than the limit")
    if not inflater.eof:
        raise UnreadableImage(path, "the deflated data set breaks off; copy the file again from its origin")
    return content[:start].replace(_DEFLATED, _EXPLICIT) + inflated


def _picture_size(path: Path, dataset: Dataset) -> PictureSize:
    """Rows, columns and samples by the tags, and that the frames together keep within limits."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadableImage(
            path, "there is no pixel data in it: it is a report, a directory or a part of a file"
        )
    rows, columns = integer(path, dataset, "Rows"), integer(path, dataset, "Columns")
    samples = integer(path, dataset, "SamplesPerPixel")
    check_picture(path, rows, columns)
    check_volume(path, (frames_of(path, dataset), rows, columns))
    if samples not in (1, 3):
        raise UnreadableImage(path, f"expected 1 or 3 SamplesPerPixel, got {samples}")
    return PictureSize(rows, columns, samples)


def _transfer_syntax(path: Path, dataset: Dataset) -> UID:
    """TransferSyntaxUID (0002,0010); without file meta information, what the data set was parsed as."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if not meta.get("TransferSyntaxUID"):
        uncompressed = {
            (True, True): ImplicitVRLittleEndian,
            (False, True): ExplicitVRLittleEndian,
            (False, False): ExplicitVRBigEndian,
        }
        meta.TransferSyntaxUID = uncompressed[dataset.original_encoding]
        dataset.file_meta = meta
    syntax = meta.TransferSyntaxUID
    if not syntax.is_private and not syntax.is_transfer_syntax:
        raise UnreadableImage(path, "its TransferSyntaxUID (0002,0010) is no transfer syntax")
    return syntax


def _plugin(path: Path, syntax: UID) -> str:
    """The decoder to use: always the same one, whatever else is installed, so that values never differ."""
    from pydicom.pixels import get_decoder

    if not syntax.is_encapsulated:
        return ""
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        available = ()
    chosen = "pydicom" if syntax == _RLE else "pylibjpeg"
    if chosen not in available:
        name = "a private one" if syntax.is_private else syntax.name
        reason = f"its transfer syntax ({name}) is not supported; convert it to JPEG 2000 or uncompressed"
        raise UnreadableImage(path, reason)
    return chosen


def _check_length(path: Path, dataset: Dataset, expected: PictureSize) -> None:
    """Uncompressed pixel data must hold every frame that the tags promise."""
    if "PixelData" not in dataset:
        return
    samples = expected.components
    if samples == 3 and dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2
    values = expected.height * expected.width * samples * frames_of(path, dataset)
    promised = (values * integer(path, dataset, "BitsAllocated") + 7) // 8
    if len(dataset.PixelData or b"") < promised:
        got = len(dataset.PixelData or b"")
        raise UnreadableImage(
            path, f"the pixel data breaks off: {got} of {promised} bytes are there; copy the file again"
        )


def _frame(dataset: Dataset, index: int) -> bytes:
    """A compressed frame's bytes, found as pydicom's decoder finds them."""
    from pydicom.encaps import get_frame

    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    frame: bytes = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=offsets if all(offsets) else None,
    )
    return frame


def _stored_bits(dataset: Dataset, array: NDArray[Any]) -> NDArray[Any]:
    """Only the BitsStored bits below HighBit of integers, with their sign: PS3.5 section 8.1.1."""
    if array.dtype.kind not in "iu" or array.ndim == 3:
        return array
    allocated = array.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit") or stored - 1)
    if not 0 < stored < allocated or not stored - 1 <= high < allocated:
        return array
    # Shifted up and down again: the shift down fills in the sign of signed integers.
    up = allocated - 1 - high
    kept: NDArray[Any] = np.right_shift(np.left_shift(array, up), allocated - stored)
    return kept
