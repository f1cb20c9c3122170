"""Whatever bytes come: a picture or a typed error, and quickly."""

import io
import struct
import time
import zlib

import pytest
from PIL import Image as Pillow

from llava_grpc.engines.images import decode_image
from llava_grpc.errors import ImageInvalidError, ImageTooLargeError


def encoded(picture: Pillow.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def decode(data: bytes, max_pixels: int = 50_000_000) -> Pillow.Image:
    return decode_image(data, which="picture 2 of 3", max_pixels=max_pixels)


def png_header(width: int, height: int) -> bytes:
    """A valid PNG of that size that claims more than it has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_becomes_rgb(form):
    picture = decode(encoded(Pillow.new("RGB", (40, 30), (255, 0, 0)), form))
    assert (picture.mode, picture.size) == ("RGB", (40, 30))
    red, green, blue = picture.getpixel((20, 15))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    assert decode(encoded(Pillow.new(mode, (8, 8)), form)).mode == "RGB"


def test_transparency_lies_over_white():
    assert decode(encoded(Pillow.new("RGBA", (4, 4), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = Pillow.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255] * 256)
    assert decode(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(palette)).getpixel((0, 0)) == (0, 0, 255)


def test_grey_of_16_bits_is_scaled_not_clipped():
    assert decode(encoded(Pillow.new("I;16", (4, 4), 0x8000))).getpixel((0, 0)) == (128, 128, 128)


def test_exif_orientation_is_applied():
    picture = Pillow.new("RGB", (40, 20), "white")
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode(encoded(picture, "JPEG", exif=exif)).size == (20, 40)


def test_of_an_animation_the_first_frame_is_seen():
    frames = [Pillow.new("RGB", (10, 10), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a picture"),
        (b"hello", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(200), "video (MP4"),
        (b"\x1aE\xdf\xa3" + bytes(200), "video (WebM"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(200), "video (AVI"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data, says):
    with pytest.raises(ImageInvalidError, match=r"picture 2 of 3") as caught:
        decode(data)
    assert says in str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_pictures_are_refused(form, keep):
    noisy = Pillow.effect_noise((64, 64), 80).convert("RGB")
    data = encoded(noisy, form)
    with pytest.raises(ImageInvalidError, match="picture 2 of 3"):
        decode(data[: int(len(data) * keep)])


@pytest.mark.parametrize("side", [8000, 12000, 30000])
def test_a_bomb_is_refused_before_it_is_decoded(side):
    began = time.perf_counter()
    with pytest.raises(ImageTooLargeError) as caught:
        decode(png_header(side, side))
    assert time.perf_counter() - began < 0.2
    size = f"{side} x {side} = {side * side} pixels"
    assert caught.value.cause == f"picture 2 of 3 has {size}, more than the 50000000 allowed"
    assert caught.value.metadata == {"max_pixels": "50000000"}


def test_a_limit_beyond_pillows_own_holds():
    with pytest.raises(ImageTooLargeError, match="900000000 pixels, more than the 800000000 allowed"):
        decode(png_header(30_000, 30_000), max_pixels=800_000_000)
    with pytest.raises(ImageInvalidError, match="cut short"):
        decode(png_header(14_000, 14_000), max_pixels=800_000_000)


def test_a_bomb_whose_reader_measures_it_by_itself_is_refused_with_our_limit():
    side = (16_383 - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + side + side
    data = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
    with pytest.raises(ImageTooLargeError, match="more than the 50000000 allowed"):
        decode(data)


@pytest.mark.parametrize("size", [(1, 101), (101, 1), (50, 5001)])
def test_a_strip_is_refused_before_it_is_decoded(size):
    with pytest.raises(ImageTooLargeError, match=f"picture 2 of 3 is {size[0]} x {size[1]}: .* 100 times") as caught:
        decode(png_header(*size))  # whose pixels would be found damaged
    assert caught.value.remedy == "Crop it"


@pytest.mark.parametrize("size", [(1, 100), (100, 1)])
def test_the_longest_strip_allowed_is_decoded(size):
    assert decode(encoded(Pillow.new("RGB", size))).size == size


def test_the_limit_is_inclusive():
    data = encoded(Pillow.new("RGB", (10, 10)))
    assert decode(data, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageTooLargeError, match="100 pixels, more than the 99 allowed"):
        decode(data, max_pixels=99)


def test_damage_in_the_middle_never_escapes_as_another_error():
    data = bytearray(encoded(Pillow.effect_noise((32, 32), 80).convert("RGB"), "PNG"))
    for position in range(8, len(data), 97):
        broken = bytes(data[:position]) + b"\xff\x00\xff" + bytes(data[position + 3 :])
        try:
            assert decode(broken).mode == "RGB"
        except (ImageInvalidError, ImageTooLargeError):
            continue
