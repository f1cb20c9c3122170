"""Token ids to streamed text: incremental detokenizing, and stop strings. Pure: no tokenizer library, no torch.

Laws:

1. A `Delta` never ends inside a character, and never holds text that may be the beginning of a stop string. The tokens
   of text that is held back are held back with it.
2. The texts joined are what the tokenizer makes of the whole answer at once, special tokens left out. (One exception:
   byte-fallback vocabularies, as SentencePiece's, turn a whole run of byte tokens into replacement characters when one
   of them is wrong. Waiting for the end of every run would hold back whole Chinese sentences; so a character is
   delivered when it is complete, and only the number of replacement characters after it can differ.)
3. Where text ends does not depend on how it was cut into tokens: the stop string that is complete first wins.
4. The cost of a token does not grow with the answer.

Decoding in a sliding window, with the last piece as context, follows the prefix-offset method of text-generation-
inference and vLLM: a decoder may treat its first token specially (SentencePiece drops a leading space), so text is
always the difference of two decodings that begin at the same token.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from llava_grpc.core.stream import Delta
from llava_grpc.errors import SamplingInvalidError

Decode = Callable[[Sequence[int]], str]
"""Ids to text in one go, no clean-up of spaces."""

REPLACEMENT = "\ufffd"
LONGEST_WAIT = 8
"""Tokens without a whole character after which waiting for one makes no sense: a character has 4 bytes at most."""
UNDECIDED = 4
"""Of those, the last ones, which may still become a character."""


@dataclass(frozen=True, slots=True)
class Atom:
    """The fewest tokens that make whole characters, and these."""

    token_ids: tuple[int, ...]
    text: str


class Detokenizer:
    """Feeds on ids one by one and gives atoms.

    Args:
        decode: ids to text.
        silent: ids that are no text (special tokens, ids beyond the tokenizer's). They are never decoded.
    """

    def __init__(self, decode: Decode, silent: Container[int] = ()) -> None:
        self._decode = decode
        self._silent = silent
        self._window: list[int] = []  # the last atom's ids, then those that wait; silent ones left out
        self._done = 0  # how many of the window are the last atom's
        self._done_text = ""
        self._waiting: list[int] = []  # ids not given yet, silent ones included

    def push(self, token_id: int) -> Atom | None:
        """Takes an id; gives an atom when characters are complete."""
        self._waiting.append(token_id)
        if token_id in self._silent:
            return self._give(len(self._waiting), "") if len(self._waiting) == 1 else None
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) > len(self._done_text) and not text.endswith(REPLACEMENT):
            piece = text[len(self._done_text) :]
            self._slide(len(self._window))
            return self._give(len(self._waiting), piece)
        if len(self._window) - self._done >= LONGEST_WAIT:
            return self._give_up(text)
        return None

    def flush(self) -> Atom | None:
        """What waits, with its unfinished characters as the decoder shows them."""
        if not self._waiting:
            return None
        piece = self._decode(self._window)[len(self._done_text) :]
        self._slide(len(self._window))
        return self._give(len(self._waiting), piece)

    def _give_up(self, text: str) -> Atom | None:
        """Gives what cannot become a character any more: bytes that are no UTF-8."""
        cut = len(self._window) - UNDECIDED
        decided = self._decode(self._window[:cut])
        if not text.startswith(decided):
            return None
        waiting_decided = len(self._waiting) - UNDECIDED
        if any(token_id in self._silent for token_id in self._waiting[waiting_decided:]):
            return None  # rare enough to wait one token more
        piece = decided[len(self._done_text) :]
        self._slide(cut)
        return self._give(waiting_decided, piece)

    def _slide(self, end: int) -> None:
        self._window = self._window[self._done :]
        self._done = end - self._done
        self._done_text = self._decode(self._window[: self._done])

    def _give(self, count: int, text: str) -> Atom:
        given, self._waiting = self._waiting[:count], self._waiting[count:]
        return Atom(tuple(given), text)


class StopScanner:
    """Holds atoms back while their text may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held: list[Atom] = []
        self.found = ""
        """The stop string that ended the text."""

    def push(self, atom: Atom, *, may_end: bool = True) -> list[Atom]:
        """Takes an atom; gives those that are certain. After a match: what comes before it, the last atom cut.

        A stop string that is complete with this atom counts only where it `may_end` the text.
        """
        if not self._stops:
            return [atom]
        before = sum(len(held.text) for held in self._held)
        self._held.append(atom)
        text = "".join(held.text for held in self._held)
        # Of what was held before, nothing is a match: it would have ended the text, or did not count.
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if matches and may_end:
            _, start, self.found = min(matches)
            return self._before(start)
        doubtful = max(_overlap(text, stop) for stop in self._stops)
        given = []
        left = len(text)
        while self._held and left - len(self._held[0].text) >= doubtful:
            left -= len(self._held[0].text)
            given.append(self._held.pop(0))
        return given

    def flush(self) -> list[Atom]:
        """All that is held."""
        given, self._held = self._held, []
        return given

    def _before(self, end: int) -> list[Atom]:
        given, begins = [], 0
        for atom in self._held:
            if begins >= end:
                break
            given.append(Atom(atom.token_ids, atom.text[: end - begins]))
            begins += len(atom.text)
        self._held = []
        return given


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, short of the whole of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class AnswerText:
    """One answer's way from ids to Deltas.

    Tokens that earlier attempts delivered go the same way again, so that everything here (half characters, possible
    stop strings, a stop string that ended the answer) is as it was; only they are not delivered twice. An atom of
    which some tokens are new is delivered whole, with its new tokens: a log that was cut where streams are cut, between
    two Deltas, has no such atom.

    Args:
        decode: ids to text.
        silent: ids that are no text.
        stops: stop strings.
        emitted: ids delivered by earlier attempts; offsets count them, text goes on after theirs.
        min_new_tokens: a stop string that is complete with one of the first so many tokens does not count.

    Raises:
        SamplingInvalidError: the emitted ids go on after a stop string.
    """

    def __init__(
        self,
        decode: Decode,
        silent: Container[int] = (),
        stops: Sequence[str] = (),
        emitted: Sequence[int] = (),
        min_new_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(decode, silent)
        self._scanner = StopScanner(stops)
        self._least = min_new_tokens
        self._taken = 0
        self._given = 0  # tokens that have left the scanner, those of earlier attempts included
        self._emitted = len(emitted)
        for token_id in emitted:
            if self.stop_sequence:
                raise SamplingInvalidError(
                    f"the emitted tokens go on after the stop string {self.stop_sequence!r}",
                    remedy="Send the tokens that were delivered for this very request",
                )
            self.push(token_id)

    @property
    def stop_sequence(self) -> str:
        """The stop string that ended the answer; empty while none did. Nothing may be pushed after it."""
        return self._scanner.found

    def push(self, token_id: int) -> Delta | None:
        """Takes a token of the answer (not the one that ends it); gives what may be delivered."""
        self._taken += 1
        atom = self._detokenizer.push(token_id)
        return None if atom is None else self._delta(self._scan(atom))

    def finish(self) -> Delta | None:
        """The answer ended otherwise than by a stop string: gives all that is held back."""
        atom = self._detokenizer.flush()
        last = self._delta(self._scan(atom)) if atom else None
        if self._scanner.found:
            return last
        rest = self._delta(self._scanner.flush())
        if last is None or rest is None:
            return last or rest
        return last.joined(rest)

    def _scan(self, atom: Atom) -> list[Atom]:
        return self._scanner.push(atom, may_end=self._taken > self._least)

    def _delta(self, atoms: list[Atom]) -> Delta | None:
        text, new = "", ()  # type: str, tuple[int, ...]
        for atom in atoms:
            unseen = atom.token_ids[max(0, self._emitted - self._given) :]
            self._given += len(atom.token_ids)
            if unseen:
                text += atom.text
                new += unseen
        return Delta(text, new, self._given) if new else None
