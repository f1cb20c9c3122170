"""Pictures from whatever people have: a file, bytes, a PIL image, the digest of one sent before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from llava_grpc.core.prompt import Image
from llava_grpc.errors import ImageInvalidError, ImageUriDisabledError


@runtime_checkable
class PilImage(Protocol):
    """What is needed of a `PIL.Image.Image`; pillow itself is not imported here."""

    @property
    def mode(self) -> str: ...
    def convert(self, mode: str, /) -> PilImage: ...
    def save(self, fp: IO[bytes], /, format: str) -> None: ...


Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | PilImage | Image
"""A path, encoded bytes, a PIL image, or a picture made by `picture` or `by_digest`."""

_PNG_MODES = frozenset({"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"})


def picture(source: Picture) -> Image:
    """The picture from a path, encoded bytes or a PIL image (sent as PNG).

    Reads the file here and now. Whether the bytes are a picture is found out by the worker.

    Raises:
        ImageInvalidError: there is no such file, it cannot be read, or it is empty.
        ImageUriDisabledError: a web address: pictures are not fetched.
    """
    match source:
        case Image():
            return source
        case bytes() | bytearray() | memoryview():
            if not source:
                raise ImageInvalidError("the picture has no bytes")
            return Image(data=bytes(source))
        case str() | os.PathLike():
            return Image(data=_read(os.fspath(source)))
        case PilImage():
            return Image(data=_encode(source))
    raise TypeError(f"a picture is a path, bytes, a PIL image or an Image, not {type(source).__name__}")


def pictures(sources: Picture | Iterable[Picture]) -> tuple[Image, ...]:
    """One picture or several, in order."""
    if isinstance(sources, (str, os.PathLike, bytes, bytearray, memoryview, PilImage, Image)):
        return (picture(sources),)
    return tuple(picture(source) for source in sources)


def by_digest(digest: str | bytes) -> Image:
    """A picture that the worker has seen lately, named by the sha256 of its encoded bytes: raw, or in hex.

    Raises:
        ImageInvalidError: not a sha256.
    """
    if isinstance(digest, str):
        try:
            digest = bytes.fromhex(digest)
        except ValueError:
            raise ImageInvalidError(f"{digest[:80]!r} is not a digest in hex", remedy="Give 64 hex digits") from None
    return Image(sha256=digest)


def digest_of(source: Picture) -> bytes:
    """The sha256 by which a picture can be named once it was sent."""
    image = picture(source)
    return image.sha256 or hashlib.sha256(image.data).digest()


def _read(path: str) -> bytes:
    if "://" in path:
        raise ImageUriDisabledError(f"{path} is an address, not a file", remedy="Download it and send the file")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageInvalidError(f"there is no file {path}", remedy="Check the path") from None
    except IsADirectoryError:
        raise ImageInvalidError(f"{path} is a folder", remedy="Name a picture in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageInvalidError(f"{path} cannot be read: {reason}", remedy="Check the file") from error
    if not data:
        raise ImageInvalidError(f"{path} is empty")
    return data


def _encode(image: PilImage) -> bytes:
    buffer = BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, format="PNG")
    return buffer.getvalue()
