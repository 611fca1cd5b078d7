"""How many lines are under way at a time, in number and in bytes, and how they are read."""

from __future__ import annotations

import anyio.lowlevel
import pytest

from pipeline.errors import UpstreamOverloaded, UpstreamUnavailable
from pipeline.settings import BatchSettings
from pipeline.stores.lines import Line
from workers.batches.input import Input
from workers.batches.lines import OpenLine
from workers.batches.outages import LONG_RUN
from workers.batches.window import Window

pytestmark = pytest.mark.anyio

DOWN = UpstreamUnavailable("down").fields("dispatch")
LIMITED = UpstreamOverloaded("no more").fields("dispatch")


class Store:
    """A blob whose reads take their time; satisfies `Blob`."""

    def __init__(self, contents: bytes) -> None:
        self._contents = contents
        self.size = len(contents)
        self.reading = self.most_reading = 0

    async def read(self, offset: int, length: int) -> bytes:
        self.reading += 1
        self.most_reading = max(self.reading, self.most_reading)
        await anyio.lowlevel.checkpoint()
        self.reading -= 1
        return self._contents[offset : offset + length]


def test_lines_that_waited_for_an_outage_come_again_no_more_at_a_time_than_there_is_room_for() -> None:
    window = Window(BatchSettings(batch_window=200, batch_window_bytes=4000), lambda: 100)
    for number in range(LONG_RUN):
        line = OpenLine(Line(number, 0, 500, b""))
        window.add(line)
        window.defer(line, "gpt-4", DOWN, 0.0)
    (probe,) = window.awake(1.0, 256)
    window.close(probe.number)
    assert window.met(["gpt-4"], probe.number, 2.0) == ["gpt-4"]
    came = window.awake(10.0, 256)
    assert len(came) == 4  # half of the window, and of its bytes
    assert window.awake(10.0, 256) == []
    window.close(came[0].number)
    assert len(window.awake(10.0, 256)) == 1


def test_lines_that_met_a_limit_trouble_others_until_the_last_of_them_has_its_outcome() -> None:
    window = Window(BatchSettings(batch_window=200), lambda: 100)
    lines = [OpenLine(Line(number, 0, 500, b"")) for number in range(2)]
    for line in lines:
        window.add(line)
        window.defer(line, "gpt-4", LIMITED, 0.0)
        window.defer(line, "gpt-4", LIMITED, 0.0)
    for line in lines:
        assert window.troubled
        window.close(line.number)
    assert not window.troubled


def test_a_line_whose_job_is_there_is_not_fed_again_for_a_second_one_that_is_there_too() -> None:
    window = Window(BatchSettings(batch_window=200), lambda: 100)
    lines = [OpenLine(Line(number, 0, 500, b"")) for number in (1, 2)]
    for line in lines:
        window.add(line)
        window.under_way(line, f"0-a-{line.number}-1.2", 0.0)
        line.admission = 1
    window.reconcile(window.admitted, ["0-a-1-1.2", "0-a-1-1.1"])
    assert [*window.open] == [1]
    assert [line.number for line in window.awake(0.0, 256)] == [2]


async def test_lines_are_read_in_turn_until_they_are_enough_and_all_at_once_when_they_come_again() -> None:
    store = Store(b"\xef\xbb\xbfone\n" + b"\n" * 2**21 + b"two\nthree")
    source = Input(store)
    assert [line.data for line in await source.next(1, 100)] == [b"one"]
    assert await source.next(0, 100) == await source.next(9, 0) == []
    found = await source.next(9, 1)
    assert [line.data for line in found] == [b"two"]
    found += await source.next(9, 100)
    assert [line.data for line in found] == [b"two", b"three"]
    assert await source.next(9, 100) == []
    assert [line.data for line in await source.again([OpenLine(Line(1, 0, 7, None))])] == [b"one"]
    assert await source.again([OpenLine(line) for line in found]) == found
    assert store.most_reading == 2
