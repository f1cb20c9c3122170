"""Files that are not what they should be."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def png(side: int = 64) -> bytes:
    """A small honest picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def truncated_png() -> bytes:
    """Half of one whose pixels do not compress away."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    whole = buffer.getvalue()
    return whole[: len(whole) // 2]


def bomb_png(side: int = 30_000) -> bytes:
    """A few hundred bytes that claim to be `side` x `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * side + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def mp4() -> bytes:
    """The beginning of a video."""
    return struct.pack(">I", 24) + b"ftypisom" + b"\x00\x00\x02\x00isomiso2" + b"\x00" * 512
