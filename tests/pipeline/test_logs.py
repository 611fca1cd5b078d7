"""Log lines: all of them, in order, and warnings at once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading

import pytest
from fakes.waiting import wait_until

from pipeline import logs


class CountingFile(io.BytesIO):
    """Counts what would be system calls."""

    def __init__(self) -> None:
        super().__init__()
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


@pytest.mark.anyio
async def test_info_lines_of_a_burst_go_out_together_and_in_order() -> None:
    file = CountingFile()
    lines = logs._Lines(file)
    for n in range(100):
        lines.info(b"%d" % n)
    assert file.flushes == 0
    await wait_until(lambda: file.flushes == 1)
    assert file.getvalue() == b"".join(b"%d\n" % n for n in range(100))


@pytest.mark.anyio
async def test_a_warning_goes_out_at_once_behind_what_waited() -> None:
    file = CountingFile()
    lines = logs._Lines(file)
    lines.info(b"first")
    lines.warning(b"second")
    assert file.getvalue() == b"first\nsecond\n"


def test_without_an_event_loop_every_line_goes_out_at_once() -> None:
    file = CountingFile()
    logs._Lines(file).info(b"line")
    assert file.getvalue() == b"line\n"


def test_no_line_is_lost_between_threads() -> None:
    file = CountingFile()
    lines = logs._Lines(file)
    threads = [threading.Thread(target=lambda: [lines.info(b"x") for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.getvalue().count(b"x\n") == 4000


def test_a_reader_that_left_ends_nothing() -> None:
    file = io.BytesIO()
    file.close()
    logs._Lines(file).warning(b"line")


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_process_that_ends_has_written_its_lines_and_no_locals(form: str) -> None:
    program = (
        "import asyncio\n"
        "from pipeline import logs\n"
        f"logs.configure(json={form == 'json'})\n"
        "log = logs.logger('here')\n"
        "async def main():\n"
        "    body = 'a secret prompt'\n"
        "    log.info('kept', n=1)\n"
        "    try:\n"
        "        1 / 0\n"
        "    except ZeroDivisionError:\n"
        "        log.exception('failed')\n"
        "    log.info('after it')\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stderr.index("kept") < ended.stderr.index("ZeroDivisionError") < ended.stderr.index("after it")
    assert "a secret prompt" not in ended.stderr
    if form == "json":
        events = [json.loads(line) for line in ended.stderr.splitlines()]
        assert [event["event"] for event in events] == ["kept", "failed", "after it"]


def test_a_traceback_says_where_and_never_what() -> None:
    words = [f"a secret {what}" for what in ("prompt", "key", "completion", "answer")]
    circle = KeyError(words[0])
    circle.__context__ = ValueError(words[1])
    circle.__context__.__context__ = circle
    try:
        try:
            raise circle
        except KeyError as error:
            raise ExceptionGroup(words[2], [OSError(words[3])]) from error
    except ExceptionGroup as error:
        text = logs._traceback((type(error), error, error.__traceback__))
    assert "secret" not in text
    for name in ("builtins.KeyError", "builtins.ValueError", "builtins.OSError", "builtins.ExceptionGroup"):
        assert name in text
    assert "test_a_traceback_says_where_and_never_what" in text
