"""Encoded pictures to RGB, with nothing taken on trust.

Law: whatever bytes come in, either a picture comes out or a typed error that names it ("picture 2 of 3"). The size and
the shape are read from the header and checked before a pixel is decoded, so a bomb costs milliseconds.
"""

from __future__ import annotations

import io
import struct

from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from llava_grpc.errors import ImageInvalidError, ImageTooLargeError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows more, some of which call other programs."""

MAX_ASPECT = 100
"""Longer side to shorter side. Processors that scale the shorter side to a fixed length, as LLaVA-1.5's does, make a
picture of 1 x 16000 one of 336 x 5,376,000: gigabytes from a hundred bytes."""

_VIDEO_BRANDS = (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp")


def decode_image(data: bytes, *, which: str, max_pixels: int) -> Pillow.Image:
    """The picture, upright (EXIF), RGB, transparency over white; of an animation the first frame.

    Args:
        data: the encoded file.
        which: what errors call it, e.g. "picture 2 of 3".
        max_pixels: width times height at most.

    Raises:
        ImageInvalidError: not a picture, of another format, or cut short.
        ImageTooLargeError: more pixels than `max_pixels`, or one side longer than `MAX_ASPECT` times the other.
    """
    picture = _open(data, which, max_pixels)
    width, height = picture.size
    if width * height > max_pixels:
        raise _too_large(f"{which} has {width} x {height} = {width * height} pixels", max_pixels)
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLargeError(
            f"{which} is {width} x {height}: one side is more than {MAX_ASPECT} times the other",
            remedy="Crop it",
            metadata={"max_aspect": str(MAX_ASPECT)},
        )
    try:
        picture.seek(0)
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise ImageInvalidError(
            f"{which} is cut short or damaged: {error}", metadata={"format": picture.format or ""}
        ) from error


def _open(data: bytes, which: str, max_pixels: int) -> Pillow.Image:
    try:
        return _identify(data)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        # A format whose reader measures by itself (WebP, GIF); it keeps the size to itself.
        least = Pillow.MAX_IMAGE_PIXELS or 0
        raise _too_large(f"{which} has more than {least} pixels", min(max_pixels, least)) from error
    except UnidentifiedImageError as error:
        raise ImageInvalidError(f"{which} is not a picture: {_describe(data)}") from error
    except Exception as error:
        raise ImageInvalidError(f"{which} is damaged: {error}") from error


def _identify(data: bytes) -> Pillow.Image:
    """As `Pillow.open` does, but for its limit of pixels, which is the process's, and hides the size."""
    Pillow.init()
    for form in FORMATS:
        reader, accepts = Pillow.OPEN[form]
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        try:
            return reader(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # by which a reader says that it is of another format
    raise UnidentifiedImageError


def _too_large(cause: str, max_pixels: int) -> ImageTooLargeError:
    return ImageTooLargeError(f"{cause}, more than the {max_pixels} allowed", metadata={"max_pixels": str(max_pixels)})


def _describe(data: bytes) -> str:
    """What the bytes seem to be, for the one who sent them."""
    if data[4:8] == b"ftyp" and data[8:12].startswith(_VIDEO_BRANDS):
        return "it looks like a video (MP4 or QuickTime)"
    if data[4:12] in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "it looks like AVIF or HEIC, which is not read here"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "it looks like a video (WebM or Matroska)"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "it looks like a video (AVI)"
    if data[:4] in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"):
        return "it looks like a video (MPEG)"
    if data[:4] == b"%PDF":
        return "it looks like a PDF"
    if data.lstrip()[:1] == b"<":
        return "it looks like SVG, XML or HTML"
    return f"{len(data)} bytes that begin with {data[:8]!r}"


def _to_rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
        picture = picture.point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        transparent = picture.convert("RGBA")
        white = Pillow.new("RGBA", transparent.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, transparent).convert("RGB")
    return picture.convert("RGB")
