"""What is shown of a batch: on a terminal, elsewhere, and for programs."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.live import Live

from workers.batch_command.screens import Bar, Lines, Objects, open_screen


def seen(done: int, status: str = "in_progress", **fields: Any) -> bytes:
    return msgspec.json.encode(
        {
            "id": "batch_1",
            "status": status,
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file-1",
            "created_at": 0,
            "request_counts": {"total": 100, "completed": done, "failed": 0},
            **fields,
        }
    )


def shown(*steps: tuple[float, bytes], name: str = "in.jsonl") -> str:
    """Return a terminal's output for a batch seen at these times."""
    output, clock = io.StringIO(), iter([0.0, *(time for time, _ in steps)])
    with Live(console=Console(file=output, force_terminal=True, width=100), auto_refresh=False) as live:
        bar = Bar(name, live, now=lambda: next(clock))
        bar.transfer("uploaded", 512, 1024)
        live.refresh()
        for _, batch in steps:
            bar.show(batch)
            live.refresh()
        bar.say("the gateway is back")
        bar.transfer("downloaded", 1024, 1024)
    return output.getvalue()


def test_a_terminal_shows_a_bar_with_its_figures() -> None:
    paused = {"promptmill": {"paused": "prompt_manager_error", "open": 3}}
    text = shown((1.0, seen(10)), (2.0, seen(60, **paused)), (3.0, seen(100, "completed")))
    for words in ("512 B of 1.0 kB", "10/100", "50/s", "eta 0:01", "in flight 3", "paused: prompt_manager_error"):
        assert words in text
    last = text[text.rindex("100/100") :]
    assert "completed" in last
    assert "1.0 kB of 1.0 kB downloaded" in last, "the bar stays while the results come"


def test_a_long_name_leaves_room_for_the_bar() -> None:
    text = shown((1.0, seen(1)), name="a-" * 30 + "input.jsonl")
    assert "…a-a-a-a-a-a-a-a-input.jsonl" in text
    assert "━━━━━━━━" in text


def test_elsewhere_a_line_is_shown_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 2.0, 7.0, 8.0, 9.0])
    lines = Lines("in.jsonl", now=lambda: next(clock))
    lines.transfer("uploaded", 1, 2)
    lines.transfer("uploaded", 2, 2)
    for done in (10, 20, 70, 80):
        lines.show(seen(done))
    lines.show(seen(100, "completed"))
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split("  ")[1] for line in said.err.splitlines()] == ["2 B uploaded", "10/100", "70/100", "100/100"]


def test_elsewhere_too_it_is_told_why_lines_wait(capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"causes": {"upstream_rate_limited": 3, "upstream_timeout": 1}, "backing_off": {"m": 4.0}, "resting": 2}
    lines = Lines("in.jsonl", now=iter([0.0, 1.0, 2.0]).__next__)
    lines.show(seen(10, promptmill=progress))
    lines.show(seen(100, "completed", promptmill=progress))
    first, last = capsys.readouterr().err.splitlines()
    assert first.endswith("put off by limits 3 (backing off m 4s)  2 lines wait for a later try: upstream_timeout")
    assert last.endswith("completed")


def test_programs_get_each_object_once(capsys: pytest.CaptureFixture[str]) -> None:
    objects = Objects()
    objects.transfer("uploaded", 1, 2)
    for batch in (seen(1), seen(1), seen(2)):
        objects.show(batch)
    objects.say("away")
    said = capsys.readouterr()
    assert said.out.encode().splitlines() == [seen(1), seen(2)]
    assert said.err == "away\n"


def test_no_terminal_means_lines() -> None:
    with open_screen("in.jsonl") as screen:
        assert isinstance(screen, Lines)
