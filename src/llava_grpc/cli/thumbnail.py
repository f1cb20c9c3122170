"""A picture as coloured half-blocks, for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def thumbnail(path: Path, columns: int = 28) -> Text:
    """The picture, `columns` characters wide; each character is two pixels, one above the other."""
    from PIL import Image
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    with Image.open(path) as opened:
        rows = max(2, round(columns * opened.height / opened.width / 2) * 2)
        pixels = opened.convert("RGB").resize((columns, rows), Image.Resampling.BOX).tobytes()

    def colour(x: int, y: int) -> Color:
        start = 3 * (y * columns + x)
        return Color.from_rgb(*pixels[start : start + 3])

    text = Text()
    for y in range(0, rows, 2):
        for x in range(columns):
            text.append("▀", Style(color=colour(x, y), bgcolor=colour(x, y + 1)))
        text.append("\n")
    return text
