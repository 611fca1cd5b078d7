"""What the batch guide shows is a whole run, and tells nothing of the machine it was made on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

from fakes.terminals import COLUMNS, ROWS, Screen
from recording.cast import paced, write_cast
from recording.picture import write_picture

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = re.compile(r"/(?:work|root|home|tmp|usr)/")


def test_the_recording_shows_a_run_from_its_beginning_to_its_end() -> None:
    head, *events = map(json.loads, (DOCS / "batch-run.cast").read_text().splitlines())
    assert (head["version"], head["width"], head["height"]) == (2, COLUMNS, ROWS)
    screen = Screen()
    for _, kind, text in events:
        assert kind == "o"
        screen.feed(text)
    whole = "\n".join("".join(character for character, _ in row.values()) for row in screen.rows)
    for words in ("starting a gateway", "still running: promptmill batch watch", "going on with", "lines answered in"):
        assert words in whole
    assert not ELSEWHERE.search(whole)
    times = [at for at, _, _ in events]
    assert times == sorted(times)
    assert times[-1] < 60


def test_the_picture_is_one_that_browsers_show() -> None:
    text = (DOCS / "batch-run.svg").read_text()
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert not ELSEWHERE.search(text)
    assert len(text) < 200_000


def test_a_recording_becomes_a_cast_and_a_picture(tmp_path: Path) -> None:
    events = [(0.0, "$ run\r\n"), (0.1, "\x1b[1mbar\x1b[0m \x1b[38;5;197m<1>\x1b[0m"), (9.0, "\r\x1b[2K2"), (9.5, "")]
    assert [at for at, _ in paced(events)] == [0.0, 0.1, 1.1, 1.6]
    write_cast(tmp_path / "a.cast", events)
    assert json.loads((tmp_path / "a.cast").read_text().splitlines()[2])[1:] == ["o", events[1][1]]
    write_picture(tmp_path / "a.svg", events)
    picture = (tmp_path / "a.svg").read_text()
    assert 'font-weight="bold">bar<' in picture
    assert 'fill="#ff005f">&lt;1&gt;<' in picture
