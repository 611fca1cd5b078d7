"""Recordings of a terminal as asciicast v2 files, which players of many kinds read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from fakes.terminals import COLUMNS, ROWS

Event = tuple[float, str]
"""Seconds since the beginning, and what was written then."""

LONGEST_PAUSE = 1.0
"""Seconds without anything new that are kept."""


def paced(events: Iterable[Event]) -> list[Event]:
    """Return the events without long pauses but the last."""
    found: list[Event] = []
    before = at = 0.0
    for time, text in events:
        at += min(time - before, LONGEST_PAUSE) if text else time - before
        before = time
        found.append((at, text))
    return found


def write_cast(path: Path, events: Iterable[Event]) -> None:
    """Write a recording; it says nothing about when and where it was made."""
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "promptmill batch run"}
    lines = [json.dumps(head), *(json.dumps([round(at, 3), "o", text]) for at, text in paced(events))]
    path.write_text("\n".join(lines) + "\n")
