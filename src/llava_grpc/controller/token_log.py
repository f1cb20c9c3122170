"""What a client has been given of an answer, so that another worker can go on after it.

Laws: frames are kept as the bytes that they came in, and read only when they are needed, or when they have become many:
adjacent Deltas, joined, are one Delta. A log holds a few bytes for each token, however much its frames said about it.
"""

from __future__ import annotations

from array import array

from llava_grpc.v1 import inference_pb2 as pb

READ_AT = 64 * 1024
"""Bytes of frames from which they are read, and of which only the token ids are kept."""


class TokenLog:
    """See the module. `base`: tokens of the answer that came before, from another controller's log."""

    def __init__(self, base: int) -> None:
        self.base = base
        self._ids = array("I")
        self._frames: list[bytes] = []
        self._bytes = 0

    def add(self, frame: bytes) -> None:
        """A Delta frame was passed on."""
        self._frames.append(frame)
        self._bytes += len(frame)
        if self._bytes > READ_AT:
            self._read()

    @property
    def token_ids(self) -> array[int]:
        """Those delivered by this controller."""
        if self._frames:
            self._read()
        return self._ids

    @property
    def made(self) -> int:
        """How many these are."""
        return len(self.token_ids)

    @property
    def offset(self) -> int:
        """Tokens of the answer delivered so far, by whomever."""
        return self.base + self.made

    def _read(self) -> None:
        self._ids.extend(pb.GenerateResponse.FromString(b"".join(self._frames)).delta.token_ids)
        self._frames.clear()
        self._bytes = 0
