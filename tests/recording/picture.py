"""Recordings of a terminal as animated SVG pictures, which web pages show by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path

from fakes.terminals import COLUMNS, ROWS, Cell, Screen
from recording.cast import Event, paced

EVERY = 0.25
"""Seconds between two pictures at least."""

WIDTH, HEIGHT = 7.7, 18
"""Of a character, in pixels."""

MARGIN = 14
SIZE = (round(COLUMNS * WIDTH) + 2 * MARGIN, ROWS * HEIGHT + 2 * MARGIN)
COLOURS = ("#15161e", "#f7768e", "#9ece6a", "#e0af68", "#7aa2f7", "#bb9af7", "#7dcfff", "#c0caf5")

Frame = tuple[float, list[list[Cell]]]


def frames(events: Iterable[Event]) -> list[Frame]:
    """Return what the screen showed, and since when."""
    screen, found = Screen(), []
    for at, text in paced(events):
        screen.feed(text)
        if found and at - found[-1][0] < EVERY:
            at = found.pop()[0]
        found.append((at, screen.lines()))
    return found


def write_picture(path: Path, events: Iterable[Event]) -> None:
    """Write an animation that begins anew in its end."""
    shown = frames(events)
    end = shown[-1][0]
    width, height = SIZE
    steps = "".join(f"{at / end:.3%}{{transform:translateX(-{n * width}px)}}" for n, (at, _) in enumerate(shown[:-1]))
    pictures = "".join(f'<g transform="translate({n * width})">{_rows(rows)}</g>' for n, (_, rows) in enumerate(shown))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<title>promptmill batch run</title>\n"
        f"<style>text{{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#c0caf5;white-space:pre}}"
        f".all{{animation:all {end:.2f}s steps(1,end) infinite}}@keyframes all{{{steps}}}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1a1b26"/>\n'
        f'<g class="all">{pictures}</g>\n</svg>\n'
    )


def _rows(rows: list[list[Cell]]) -> str:
    return "".join(_row(row, MARGIN + (n + 1) * HEIGHT - 5) for n, row in enumerate(rows) if row)


def _row(row: list[Cell], y: int) -> str:
    """Return a line; each stretch of one look says how wide it is, whatever the font."""
    said, at = [], 0
    for look, cells in groupby(row, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in cells)
        if text.strip():
            x, width = MARGIN + at * WIDTH, len(text) * WIDTH
            said.append(f'<tspan x="{x:.1f}" textLength="{width:.1f}"{_look(look)}>{escape(text)}</tspan>')
        at += len(text)
    return f'<text y="{y}" xml:space="preserve">{"".join(said)}</text>' if said else ""


def _look(look: str) -> str:
    """Return the attributes for the numbers of an SGR sequence."""
    numbers = [int(number) for number in look.split(";") if number]
    said = ""
    while numbers:
        number = numbers.pop(0)
        if number == 1:
            said += ' font-weight="bold"'
        elif number == 2:
            said += ' fill-opacity="0.65"'
        elif 30 <= number <= 37 or 90 <= number <= 97:
            said += f' fill="{COLOURS[number % 10]}"'
        elif number == 38 and numbers[:1] == [5]:
            said += f' fill="{_palette(numbers[1])}"'
            numbers = numbers[2:]
    return said


def _palette(number: int) -> str:
    """Return one of the 256 colours of a terminal."""
    if number < 16:
        return COLOURS[number % 8]
    if number >= 232:
        return "#" + f"{8 + (number - 232) * 10:02x}" * 3
    levels = (0, 95, 135, 175, 215, 255)
    red, rest = divmod(number - 16, 36)
    return "#" + "".join(f"{levels[level]:02x}" for level in (red, *divmod(rest, 6)))
