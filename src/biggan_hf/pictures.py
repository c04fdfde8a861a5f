"""An encoded picture to uint8 pixels: upright, without transparency, in 8 bits, the centre square."""

import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F


MAX_PIXELS = 64_000_000
FULL_SIZE = "full_size"  # in `info` of a picture that was decoded smaller than it is: width and height, upright
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEGS = ("JPEG", "MPO")  # a phone's .jpg may hold further pictures after the first
JPEG_START, JPEG_PIXELS, JPEG_END = b"\xff\xd8", b"\xda", b"\xff\xd9"  # markers; a preview may end before the pixels
SCALED_TO_16_BITS = ("PNG", "PPM", "JPEG2000")  # by Pillow, whatever depth or maximum these files state
GREY_MODES = ("1", "L", "La", "LA", "I", "F")
SAMPLE_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floats"}  # of TIFF
# Tags of TIFF: Pillow names only the first two.
PHOTOMETRIC, SAMPLE_FORMAT = TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, TiffImagePlugin.SAMPLEFORMAT
MIN_SAMPLE, MAX_SAMPLE, S_MIN_SAMPLE, S_MAX_SAMPLE = 280, 281, 340, 341

# Pillow reads these depths, but knows only one of the kinds of TIFF that have them. 12 bits are packed in the same way
# in both orders of bytes. Where white is zero, `_in_8_bits` turns the values.
for _order, _floats in {b"II": "F;64F", b"MM": "F;64BF"}.items():
    for _photometric in (0, 1):
        TiffImagePlugin.OPEN_INFO.setdefault((_order, _photometric, (1,), 1, (12,), ()), ("I;16", "I;12"))
        TiffImagePlugin.OPEN_INFO.setdefault((_order, _photometric, (3,), 1, (64,), ()), ("F", _floats))


def decode_picture(cell: Mapping[str, Any] | None, image_size: int, num_channels: int) -> Tensor:
    """
    The centre square ([`square_of`]) of a picture from [`open_picture`].

    Returns:
        uint8 (num_channels, image_size, image_size); where it cannot be decoded, a `ValueError` says why in one line.
    """
    return square_of(open_picture(cell, num_channels), image_size)


def square_of(picture: Image.Image, image_size: int, place: float | None = None) -> Tensor:
    """
    Crops a square of a grey or RGB picture, as large as it can be, and resizes it with PIL's Lanczos filter, whose
    support grows with the reduction, so that nothing aliases.

    Args:
        place: In [0, 1), along the longer side; default the middle.

    Returns:
        uint8 (1 or 3, image_size, image_size)
    """
    width, height = picture.info.get(FULL_SIZE, picture.size)
    reduction, side = round(width / picture.width), min(width, height)
    rests = (width - side, height - side)
    left, top = (int(place * (rest + 1)) if place is not None else rest // 2 for rest in rests)
    # Of a reduced picture the edges may lie between pixels: a half of 375 is 187.5. Rounded, the picture would be
    # stretched, which changes its pixels twice as much as the reduction does.
    box = tuple(edge / reduction for edge in (left, top, left + side, top + side))
    if reduction > 1 and (square := _quick_square(picture, box, image_size)) is not None:
        return square
    picture = picture.resize((image_size, image_size), Image.Resampling.LANCZOS, box)
    array = np.array(picture).reshape(image_size, image_size, -1)
    return torch.from_numpy(array).permute(2, 0, 1)


def _quick_square(picture: Image.Image, box: Sequence[float], image_size: int) -> Tensor | None:
    """
    torch's Lanczos (2.13) takes a quarter of the time of PIL's, and differs by 0.03 levels of 255: PIL also looks at
    what lies around the box. It resizes from a whole pixel on, which may be the far edge: of mirrored pixels. `None`
    where neither edge lies on a pixel's, and where torch has no Lanczos.
    """
    pixels = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, -1).permute(2, 0, 1)[None]
    mirrored, scales = [], []
    for dim, first, end in ((2, box[1], box[3]), (3, box[0], box[2])):
        if not (first.is_integer() or end.is_integer()):
            return None
        pixels = pixels.narrow(dim, int(first), math.ceil(end) - int(first))
        mirrored += [] if first.is_integer() else [dim]
        scales.append(math.nextafter(image_size / (end - first), math.inf))  # its product is rounded down, to pixels
    try:
        resized = F.interpolate(pixels.flip(mirrored), scale_factor=scales, mode="lanczos", antialias=True)
    except (NotImplementedError, ValueError):  # an earlier torch
        return None
    return resized.flip(mirrored)[0].contiguous()


def as_ppm(pixels: np.ndarray) -> bytes:
    """An encoded picture of exactly these pixels, uint8 (1 or 3, H, W): a header and the bytes."""
    kind, (_, height, width) = 6 if len(pixels) == 3 else 5, pixels.shape
    return b"P%d %d %d 255\n" % (kind, width, height) + pixels.transpose(1, 2, 0).tobytes()


def open_picture(cell: Mapping[str, Any] | None, num_channels: int, at_least: int | None = None) -> Image.Image:
    """
    A picture in 8 bits, upright (EXIF), grey (1) or RGB (3), with transparency laid on white. A grey picture in more
    than 8 bits is scaled by what its file states as white.

    Args:
        cell: "bytes" or else "path" of an encoded picture, as `datasets` stores them.
        at_least: An upright JPEG may come at a half, a fourth or an eighth of its size, if both sides keep so many
            pixels.
    """
    if cell is None:
        raise ValueError("there is no picture")
    try:
        return _flatten(stored_picture(cell, at_least), "RGB" if num_channels == 3 else "L")
    except UnidentifiedImageError as error:
        raise ValueError(_unknown_format(encoded_bytes(cell))) from error
    except Image.DecompressionBombError as error:  # Pillow has a limit, too, and no words for a list of reasons
        raise ValueError(f"its pixels are more than {MAX_PIXELS:,}") from error
    except Exception as error:  # PIL's decoders raise nearly any type on broken bytes
        name = "" if isinstance(error, UnreadableError) else f"{type(error).__name__}: "
        raise ValueError(f"{name}{first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, without the path, which is not for others to read; its name if it says nothing."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.splitlines() or [type(error).__name__])[0]


def _unknown_format(data: bytes) -> str:
    """Why Pillow does not know a picture's format: of a TIFF, its depth or compression is none that it reads."""
    try:
        file, tags = io.BytesIO(data), TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file.seek(tags.next)
        tags.load(file)
        depths, colours = tags[TiffImagePlugin.BITSPERSAMPLE], tags[PHOTOMETRIC]
        kind = SAMPLE_FORMATS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "values")
        how = f"compression {tags[TiffImagePlugin.COMPRESSION]} and colours {colours}"
    except Exception:  # no TIFF, or a broken one
        return "unknown image format"
    return (
        f"{len(depths)} × {depths[0]}-bit {kind} in a TIFF file with {how}, which Pillow does not read: save it as "
        f"grey or RGB of 8 or 16 bits, or as grey floats of 32 bits, uncompressed"
    )


class UnreadableError(ValueError):
    """The reason is a sentence of ours."""


class Stored(NamedTuple):
    """What a picture is in its file."""

    mode: str  # Pillow's
    height: int  # upright
    width: int
    is_coloured: bool  # and not grey in RGB
    largest: int  # of all values, of 255
    is_deep: bool  # more than 8 bits; Pillow reads RGB of 16 bits as RGB of 8

    @property
    def channels(self) -> int:
        return _channels(self.mode)


def _channels(mode: str) -> int:
    return 1 if mode.partition(";")[0] in GREY_MODES else 3


def describe_stored(cell: Mapping[str, Any]) -> Stored:
    """Raises errors of many types where the picture cannot be decoded."""
    stored = stored_picture(cell)
    picture = _flatten(stored, "RGB")
    pixels = np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).astype(int)
    is_coloured = bool((pixels.max(2) - pixels.min(2) > 8).any())
    # The 25th byte of a PNG file is its depth.
    bits = encoded_bytes(cell)[24] if stored.format == "PNG" else _tag(stored, TiffImagePlugin.BITSPERSAMPLE) or 8
    is_deep = stored.mode[0] in "IF" or bits > 8
    return Stored(stored.mode, picture.height, picture.width, is_coloured, int(np.asarray(picture).max()), is_deep)


def stored_shape(cell: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Channels, height and width as a file's head states them; `None` where it can't be read."""
    with suppress(Exception):  # of any type from broken bytes, which are reported when they are decoded
        with Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])) as picture:
            return _channels(picture.mode), picture.height, picture.width
    return None


def stored_picture(cell: Mapping[str, Any], at_least: int | None = None) -> Image.Image:
    """The picture as PIL decodes it: its own mode and depth, not yet upright. `at_least` as for `open_picture`."""
    data = encoded_bytes(cell)
    picture = Image.open(io.BytesIO(data))
    if picture.width * picture.height > MAX_PIXELS:
        raise UnreadableError(f"{picture.width}×{picture.height} pixels are more than {MAX_PIXELS:,}")
    # One that will be turned comes in full: half a pixel would change sides.
    if at_least is not None and picture.format in JPEGS and _is_upright(picture):
        full_size = picture.size
        picture.draft(None, (at_least, at_least))
        picture.info[FULL_SIZE] = full_size
    picture.load()
    if picture.format == "PNG":
        _check_pixels_of_png(data)
        _scale_transparency(picture, data[24])
    if picture.format in JPEGS:
        _check_end_of_jpeg(data)
    return picture


def _check_pixels_of_png(data: bytes) -> None:
    """Pillow compares the checksums of all chunks but of those that hold the pixels."""
    view, start, kind = memoryview(data), len(PNG_SIGNATURE), b""
    while kind != b"IEND" and start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if not kind.isalpha():
            return  # what comes after the pixels
        if kind == b"IDAT" and zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise UnreadableError("the pixels in the PNG file do not fit their checksum: it is damaged")
        start = end + 4


def _scale_transparency(picture: Image.Image, bits: int) -> None:
    """Pillow scales the pixels of a PNG to 8 bits, and leaves the value that is transparent as the file has it."""
    value = picture.info.get("transparency")
    if picture.mode == "L" and value is not None:
        picture.info["transparency"] = value * 255 // (2**bits - 1)
    if picture.mode == "RGB" and value is not None and bits == 16:
        picture.info["transparency"] = tuple(channel >> 8 for channel in value)


def _check_end_of_jpeg(data: bytes) -> None:
    """
    Pillow takes zeros for pixels, mostly grey: as where a download has stopped in a file of full length. It does see
    where another picture begins before the first one's end.
    """
    start = len(JPEG_START)
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] != JPEG_PIXELS:
        is_fill = data[start + 1 : start + 2] == b"\xff"  # any number of them may precede a marker
        start += 1 if is_fill else 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    if data[start : start + 1] == b"\xff" and data.rfind(JPEG_END, start) < 0:
        raise UnreadableError("the JPEG file has no end: its last pixels are missing")


def _is_upright(picture: Image.Image) -> bool:
    return picture.getexif().get(ExifTags.Base.Orientation, 1) == 1


def encoded_bytes(cell: Mapping[str, Any]) -> bytes:
    if cell["bytes"] is not None:
        return cell["bytes"]
    if "://" not in cell["path"]:
        return Path(cell["path"]).read_bytes()
    with fsspec.open(cell["path"], "rb") as file:
        return file.read()


def _flatten(picture: Image.Image, mode: str) -> Image.Image:
    """The picture upright, in 8 bits a channel and without transparency."""
    stored = picture
    if not _is_upright(picture):  # otherwise it would be copied, as `convert` does
        picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF" or _tag(stored, SAMPLE_FORMAT) == 2:  # signed
        picture = _in_8_bits(np.asarray(picture), stored)
    if picture.has_transparency_data:
        picture = picture.convert("LA") if picture.mode == "La" else picture  # the only way of PIL from "La"
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == mode else picture.convert(mode)


# Grey in more than 8 bits, which PIL's own conversion clips


def _in_8_bits(values: np.ndarray, picture: Image.Image) -> Image.Image:
    """
    Args:
        values: Of the picture, upright.
        picture: As PIL decoded it, which knows its format and its tags.
    """
    tags = getattr(picture, "tag_v2", None)
    if tags is not None and tags.prefix == b"MM" and picture.mode in "IF" and picture.info["compression"] != "raw":
        raise UnreadableError(
            "signed, float or 32-bit values in a compressed big-endian TIFF file, of which Pillow mixes up the bytes: "
            "save it uncompressed or little-endian"
        )
    if picture.mode == "F" and not np.isfinite(values).all():
        raise UnreadableError("it has values that are NaN or infinite")
    if picture.mode == "I" and _tag(picture, SAMPLE_FORMAT) == 1:
        values = values.view(np.uint32)  # PIL has no unsigned mode of 32 bits
    white = _white(picture)
    if values.min() < -white / 100 or values.max() > white * 1.01:
        raise UnreadableError(f"it has values from {values.min():g} to {values.max():g}, and white is {white:g}")
    steps = white if picture.mode == "F" else white + 1
    levels = (values * (256 / steps)).clip(0, 255).astype(np.uint8)
    if _tag(picture, PHOTOMETRIC) == 0:  # white is zero, which PIL minds in 8 bits only
        levels = 255 - levels
    if "transparency" in picture.info:
        levels[values == picture.info["transparency"]] = 255
    return Image.fromarray(levels)


def _white(picture: Image.Image) -> float:
    """
    The value that stands for white; black is 0. A file's stated maximum may be only the largest value in this picture:
    pictures of one set would be scaled each in its own way. So a maximum counts only where it is 2ⁿ - 1.
    """
    if picture.format in SCALED_TO_16_BITS and picture.mode != "F":
        return 2**16 - 1
    kind = f"{'float' if picture.mode == 'F' else 'integer'} grey values in a {picture.format} file"
    if picture.format != "TIFF":
        raise UnreadableError(f"{kind}, which does not state the value of white")
    stated = _tag(picture, S_MAX_SAMPLE) or _tag(picture, MAX_SAMPLE)
    bits = _tag(picture, TiffImagePlugin.BITSPERSAMPLE)
    if stated is None and picture.mode.startswith("I;16"):
        return 2**bits - 1
    if stated is None:
        raise UnreadableError(f"{kind} without the tag SMaxSampleValue, which states the value of white")
    least = _tag(picture, S_MIN_SAMPLE) or _tag(picture, MIN_SAMPLE) or 0
    whites = [2**n - 1 for n in range(1 if picture.mode == "F" else 8, 33)]
    if least or stated not in whites:
        raise UnreadableError(
            f"{kind}, whose tags state values from {least:g} to {stated:g}, perhaps those of this picture alone: "
            f"expected from 0 to 1 (floats), 255, 4095, 65535 or another 2ⁿ - 1"
        )
    return float(stated)


def _tag(picture: Image.Image, tag: int) -> Any:
    """The first value of a tag of TIFF; `None` where there is none."""
    value = getattr(picture, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value
