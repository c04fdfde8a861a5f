"""Pictures of every depth to 8 bits."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw

from biggan_hf import pictures
from biggan_hf.data import load_labelled_images
from biggan_hf.pictures import decode_picture, open_picture, square_of


RAMP = np.tile(np.linspace(0, 1, 256), (256, 1))  # from black to white


def levels(content: bytes, num_channels: int = 1) -> np.ndarray:
    return np.asarray(open_picture({"bytes": content, "path": None}, num_channels))


def grey_map(maximum: int, kind: bytes = b"P5") -> bytes:
    values = np.round(RAMP * maximum).astype(">u2" if maximum > 255 else "u1")
    content = " ".join(map(str, values.ravel())).encode() if kind == b"P2" else values.tobytes()
    return kind + b"\n256 256\n%d\n" % maximum + content


def saved(array: np.ndarray, file_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, file_format)
    return file.getvalue()


def tiff(
    dtype: str,
    white: float,
    tags: dict[int, float] | None = None,
    photometric: int = 1,
    compressed: bool = False,
) -> bytes:
    """A TIFF whose ramp goes from 0 to `white`; "12" is the dtype of packed 12 bits."""
    order = ">" if dtype[0] == ">" else "<"
    values = RAMP * white if "f" in dtype else np.round(RAMP * white)
    if dtype.endswith("12"):
        left, right = values.astype(int)[:, ::2], values.astype(int)[:, 1::2]
        bits, sample_format = 12, 1
        content = np.stack([left >> 4, (left & 15) << 4 | right >> 8, right & 255], -1).astype(np.uint8).tobytes()
    else:
        kind = np.dtype(dtype)
        bits, sample_format, content = kind.itemsize * 8, "uif".index(kind.kind) + 1, values.astype(kind).tobytes()
    content = zlib.compress(content) if compressed else content
    entries: dict[int, float] = {
        256: 256,
        257: 256,
        258: bits,
        259: 8 if compressed else 1,
        262: photometric,
        273: 0,
        277: 1,
        278: 256,
        279: len(content),
    }
    entries |= {339: sample_format, **(tags or {})}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    directory = b""
    for tag, value in sorted(entries.items()):
        code, field = (11, "f") if isinstance(value, float) else (4, "I")
        directory += struct.pack(f"{order}HHI{field}", tag, code, 1, value)
    start = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(entries))
    return start + directory + bytes(4) + content


@pytest.mark.parametrize(
    "content",
    [
        *(grey_map(maximum) for maximum in (1, 15, 100, 255, 1023, 4095, 65535)),
        grey_map(4095, b"P2"),
        saved(np.round(RAMP * 65535).astype(np.uint16)),
        saved(np.round(RAMP * 65535).astype(np.uint16), "JPEG2000"),
        *(tiff(*depth) for depth in (("u1", 255), ("<u2", 65535), (">u2", 65535), ("12", 4095))),
        tiff("<u2", 4095, {281: 4095}),
        tiff("<u4", 2**32 - 1, {341: 2**32 - 1}),
        *(tiff(dtype, 2**31 - 1, {341: 2**31 - 1}) for dtype in ("<i4", ">i4")),
        tiff("<i4", 65535, {281: 65535}),
        tiff("<i2", 32767, {341: 32767}),
        *(tiff(order + "f4", white, {340: 0.0, 341: white}) for order in "<>" for white in (1.0, 255.0, 65535.0)),
        tiff("<u2", 65535, photometric=0),
        tiff("<f4", 1.0, {341: 1.0}, photometric=0),
        *(tiff(order + "12", 4095, photometric=photometric) for order in "<>" for photometric in (0, 1)),
        *(tiff(order + "f8", 1.0, {341: 1.0}) for order in "<>"),
        tiff("<f8", 1.0, {341: 1.0}, photometric=0),
        tiff(">u2", 65535, compressed=True),
        *(tiff("<" + kind, 1.0, {341: 1.0}, compressed=True) for kind in ("f4", "f8")),
        tiff("<i4", 65535, {341: 65535}, compressed=True),
        tiff(">12", 4095, compressed=True),
    ],
)
def test_a_ramp_from_black_to_white_is_one_in_every_depth(content: bytes) -> None:
    for num_channels in (1, 3):
        grey = levels(content, num_channels)
        assert abs(grey.mean() - 127.5) <= 0.5 and {int(grey[0, 0].min()), int(grey[0, -1].min())} == {0, 255}


def test_white_is_zero_where_a_tiff_says_so() -> None:
    for content in (tiff("u1", 255, photometric=0), tiff("<u2", 65535, photometric=0)):
        assert levels(content)[0, [0, -1]].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff("<f4", 1.0), "float grey values in a TIFF file without the tag SMaxSampleValue"),
        (tiff("<i4", 65535), "integer grey values in a TIFF file without the tag SMaxSampleValue"),
        (tiff("<u4", 2**32 - 1), "integer grey values in a TIFF file without"),
        (tiff("<i2", 32767), "integer grey values in a TIFF file without"),
        (tiff("i1", 127), "integer grey values in a TIFF file without"),
        (tiff("<f4", 0.97, {341: 0.97}), "values from 0 to 0.97, perhaps those of this picture alone"),
        (tiff("<u2", 4000, {281: 4000}), "values from 0 to 4000, perhaps those of this picture alone"),
        (tiff("<u2", 65535, {280: 100, 281: 65535}), "values from 100 to 65535, perhaps"),
        (tiff("<u2", 4000, {281: 255}), "it has values from 0 to 4000, and white is 255"),
        (tiff("<i2", -5000, {281: 65535}), "it has values from -5000 to 0, and white is 65535"),
        (tiff("<f2", 1.0), "1 × 16-bit floats in a TIFF file with compression 1 and colours 1, which Pillow does not"),
        (tiff(">u8", 255), "1 × 64-bit unsigned integers in a TIFF file .* save it as grey or RGB of 8 or 16 bits"),
        (tiff("<f2", 1.0, compressed=True), "1 × 16-bit floats in a TIFF file with compression 8 and"),
        (tiff("<f8", 1.0), "float grey values in a TIFF file without the tag SMaxSampleValue"),
        (tiff(">f4", 1.0, {341: 1.0}, compressed=True), "compressed big-endian TIFF file, of which Pillow mixes up"),
        (tiff(">i2", 32767, {341: 32767}, compressed=True), "compressed big-endian TIFF file, of which"),
        (tiff("<f2", 1.0)[:40], "unknown image format"),
        (b"Pf\n256 256\n-1.0\n" + RAMP.astype("<f4").tobytes(), "float grey values in a PPM file, which does not"),
        (b"P5\n8001 8000\n255\n", "8001×8000 pixels are more than 64,000,000"),
        (b"P5\n20000 20000\n255\n", "its pixels are more than 64,000,000"),  # Pillow's limit comes first
    ],
)  # fmt: skip
def test_a_depth_that_is_not_known_is_unreadable(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        levels(content)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"none of 1 probed.*{reason}"):
        load_labelled_images(str(tmp_path), image_size=8)


def test_sixteen_bits_lose_their_low_byte() -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024 + 1023
    assert levels(saved(deep)).flatten().tolist() == [value >> 8 for value in deep.flatten().tolist()]


def test_a_transparent_grey_of_sixteen_bits_is_white() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 300], [301, 65535]], np.uint16)).save(file, "PNG", transparency=300)
    assert levels(file.getvalue()).tolist() == [[0, 255], [1, 255]]


def png(bits: int, colours: int, row: bytes, transparent: bytes) -> bytes:
    """Of one row of pixels; Pillow writes no such depth."""
    width = len(row) * 8 // bits // (3 if colours == 2 else 1)
    header = struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    return pictures.PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def test_what_is_transparent_in_a_png_is_white_in_every_depth() -> None:
    for bits, row in ((1, b"\x55"), (2, b"\x1b"), (4, b"\x08\x4f"), (8, b"\x00\x08\xff")):
        largest = 2**bits - 1
        values = [int.from_bytes(row, "big") >> shift & largest for shift in range(len(row) * 8 - bits, -1, -bits)]
        for transparent in values:
            white = [255 if value == transparent else value * 255 // largest for value in values]
            assert levels(png(bits, 0, row, struct.pack(">H", transparent))).tolist() == [white]
    deep = [(0, 0, 0), (0x1234, 0x5678, 0x9ABC), (65535, 0, 0)]
    for transparent in deep:
        content = png(16, 2, struct.pack(">9H", *sum(deep, ())), struct.pack(">3H", *transparent))
        white = [[255] * 3 if colour == transparent else [channel >> 8 for channel in colour] for colour in deep]
        assert levels(content, 3).tolist() == [white]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_picture_with_nan_is_unreadable(value: float) -> None:
    whole = np.full((8, 8), 0.5, np.float32)
    broken = whole.copy()
    broken[-1, -1] = value

    def decoded(array: np.ndarray) -> Any:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "TIFF", tiffinfo={341: 1.0})
        return decode_picture({"bytes": file.getvalue(), "path": None}, 4, 3)

    assert torch.equal(decoded(whole), torch.full((3, 4, 4), 128, dtype=torch.uint8))
    with pytest.raises(ValueError, match="it has values that are NaN or infinite"):
        decoded(broken)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_eight_bits_is_read(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = Image.new("LA" if mode == "La" else "RGBA" if mode == "RGBa" else "L", (8, 8), "white").convert(mode)
    monkeypatch.setattr("biggan_hf.pictures.stored_picture", lambda *_: grey)
    for num_channels in (1, 3):
        assert (decode_picture({}, 4, num_channels) == 255).all()


# JPEGs at a part of their size


def jpeg(width: int, height: int, orientation: int = 1, file_format: str = "JPEG") -> dict[str, Any]:
    """Noise of several scales, as photographs have it."""
    noise, layers = np.random.default_rng(0), []
    for scale in range(2, 7):
        grid = Image.fromarray(noise.integers(0, 256, (2**scale, 2**scale, 3), np.uint8))
        layers.append(np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32))
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    others = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if file_format == "MPO" else {}
    picture = Image.fromarray(np.mean(layers, 0).astype(np.uint8))
    picture.save(file, file_format, quality=90, exif=exif, **others)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("size", "decoded"), [((500, 375), (250, 188)), ((256, 256), (128, 128)), ((255, 400), (255, 400))]
)
def test_jpegs_at_a_part_of_their_size(size: tuple[int, int], decoded: tuple[int, int]) -> None:
    cell = jpeg(*size)
    reduced = open_picture(cell, 3, at_least=128)
    assert reduced.size == decoded
    assert open_picture(cell, 3, at_least=1000).size == size and open_picture(cell, 1, at_least=128).mode == "L"


def test_the_first_picture_of_a_phone_s_file_is_a_jpeg() -> None:
    """Such a file has the format MPO, and further pictures after it."""
    cell, plain = jpeg(500, 375, file_format="MPO"), jpeg(500, 375)
    assert Image.open(io.BytesIO(cell["bytes"])).format == "MPO"
    for at_least in (None, 128):
        first, alone = (open_picture(c, 3, at_least) for c in (cell, plain))
        assert np.array_equal(np.asarray(first), np.asarray(alone))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("place", [None, 0.0, 0.37])
def test_the_square_of_a_reduced_jpeg_is_that_of_the_full_one(orientation: int, place: float | None) -> None:
    cell = jpeg(501, 375, orientation)  # the edges of its square lie between pixels of the half
    full, reduced = (square_of(open_picture(cell, 3, at_least), 128, place) for at_least in (None, 128))
    difference = (full.int() - reduced.int()).abs()
    assert difference.float().mean() < 1.5 and difference.max() < 12
    assert difference.any() == (orientation == 1)  # one that is turned comes in full


@pytest.mark.parametrize("place", [None, 0.0, 0.3, 0.999])
def test_the_square_of_a_reduced_jpeg_is_that_of_pillow(place: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the rounding of a few pixels, for edges anywhere; to the bit where torch has no Lanczos, as 2.11."""
    sizes = [
        (500, 375),
        (375, 500),
        (501, 374),
        (374, 501),
        (503, 377),
        (640, 427),
        (512, 512),
        (255, 999),
        (300, 257),
    ]
    for width, height in sizes:
        for channels in (1, 3):
            reduced = open_picture(jpeg(width, height), channels, at_least=64)
            square = square_of(reduced, 64, place)
            with monkeypatch.context() as patch:
                patch.setattr(pictures.F, "interpolate", without_lanczos)
                pillows = square_of(reduced, 64, place)
            assert square.shape == pillows.shape == (channels, 64, 64) and square.dtype == torch.uint8
            difference = (square.int() - pillows.int()).abs().float()
            assert difference.mean() < 0.1 and difference[:, 8:-8, 8:-8].max() <= 1, (width, height)


def without_lanczos(*_: Any, **__: Any) -> None:
    raise ValueError("Anti-alias option is restricted to bilinear and bicubic modes")


def test_other_formats_come_in_full() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    assert open_picture({"bytes": file.getvalue(), "path": None}, 3, at_least=8).size == (64, 64)


def test_the_place_of_a_square() -> None:
    wide = Image.fromarray(np.tile(np.arange(10, dtype=np.uint8), (4, 1)))
    tall = Image.fromarray(np.tile(np.arange(10, dtype=np.uint8)[:, None], (1, 4)))
    for picture in (wide, tall):
        firsts = [int(square_of(picture, 4, place)[0, 0, 0]) for place in (None, 0.0, 0.5, 0.99)]
        assert firsts == [3, 0, 3, 6]


def test_a_png_with_a_changed_byte_is_the_same_picture_or_none() -> None:
    """Pillow alone decodes some into other pixels: areas of one colour take few bytes, and none is missing."""
    drawn = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(drawn).ellipse((5, 5, 30, 35), fill="red", outline="blue")
    pixels = np.asarray(drawn)
    content = saved(pixels)
    others = 0
    for place in range(8, len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 4
        for damaged in (bytes(flipped), content[:place] + bytes(len(content) - place)):
            with suppress(ValueError):
                assert np.array_equal(levels(damaged, 3), pixels)
            with suppress(Exception):
                others += not np.array_equal(np.asarray(Image.open(io.BytesIO(damaged))), pixels)
    assert others > 3
    with pytest.raises(ValueError, match="^the pixels in the PNG file do not fit their checksum: it is damaged$"):
        levels(content[:-13] + bytes(13), 3)
    assert np.array_equal(levels(content[:-12], 3), pixels)  # the pixels are all there


def test_a_jpeg_that_ends_in_zeros_is_unreadable() -> None:
    """Pillow alone takes the zeros for pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    content, small = saved(noise, "JPEG"), saved(noise[:8, :8], "JPEG")
    length = (len(small) + 2).to_bytes(2, "big")
    with_preview = content[:2] + b"\xff\xe1" + length + small + content[2:]  # which has an end of its own
    with_fill = content[:2] + b"\xff\xff" + content[2:]
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with_second = file.getvalue()
    end = with_second.index(pictures.JPEG_END, len(content) // 2) + 2
    with pytest.raises(ValueError, match="broken data stream"):
        levels(with_second[: end - 100] + bytes(100) + with_second[end:], 3)
    assert np.array_equal(levels(with_second[:end] + bytes(len(with_second) - end), 3), levels(content, 3))
    for whole in (content, with_preview, with_fill, with_second):
        zeros = whole[:-1000] + bytes(1000)
        Image.open(io.BytesIO(zeros)).load()
        with pytest.raises(ValueError, match="^the JPEG file has no end: its last pixels are missing$"):
            levels(zeros, 3)
        assert np.array_equal(levels(whole + bytes(1000), 3), levels(content, 3))
