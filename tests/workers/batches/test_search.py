"""The search for lost jobs: how often it looks."""

from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest
from fakes.waiting import wait_until

from pipeline.transport.feeding import UnderWay
from workers.batches import search as search_module
from workers.batches.search import Search

pytestmark = pytest.mark.anyio


class SlowRedis:
    """A look at it takes a while, and finds that nothing is lost."""

    def __init__(self) -> None:
        self.looks = 0

    async def under_way(self, batch: str) -> UnderWay:
        self.looks += 1
        over = anyio.current_time() + 0.05
        await wait_until(lambda: anyio.current_time() > over)
        return UnderWay(set(), "0-0")

    async def listen(self) -> bool:
        return False

    def has_concluded(self, answer: str) -> bool:
        return True


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setattr(search_module, "PATIENCE", 0.01)
    monkeypatch.setattr(search_module, "SHARE", 0.1)
    window = SimpleNamespace(doubts=0, closed=0, admitted=frozenset())
    window.doubt = lambda: setattr(window, "doubts", window.doubts + 1)
    window.doubt_late = window.reconcile = lambda *_: None
    return window


async def looks_in_waves(window: SimpleNamespace) -> int:
    """Return how often one looks that has outcomes ten times a second, for eight times."""
    redis = SlowRedis()
    search = Search("b", window, redis, redis)  # type: ignore[arg-type]
    began = anyio.current_time()

    async def over() -> bool:
        seconds = anyio.current_time() - began
        window.closed = int(seconds / 0.1)
        await search.look()
        return seconds > 0.8

    await wait_until(over)
    return redis.looks


async def test_a_look_that_takes_long_is_not_made_between_any_two_waves_of_outcomes(window: SimpleNamespace) -> None:
    assert await looks_in_waves(window) <= 3, "one for each wave"


async def test_lost_answers_are_looked_for_before_long_on_a_slow_machine_too(
    window: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "LONGEST", 0.02)
    assert await looks_in_waves(window) > 3
