"""Random sources that make pauses as short, or as long, as a test wants."""

from random import Random


class Hasty(Random):
    """Pauses end at once."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


class Brisk(Random):
    """Pauses are short, but others get their turn."""

    def uniform(self, a: float, b: float) -> float:
        return 0.02


class Endless(Random):
    """Pauses outlast every test."""

    def uniform(self, a: float, b: float) -> float:
        return 1e6
