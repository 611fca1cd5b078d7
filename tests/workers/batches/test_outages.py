"""Lines that nobody can serve wait, one tries now and then, and what others need for their lines is not held up."""

from __future__ import annotations

from collections import Counter

import anyio
import msgspec
import pytest
from fakes.batches import line, lines
from fakes.desks import answer, create, ended, keeping, make_desk, working, written
from fakes.pipelines import ScriptedStage
from fakes.servers import Server
from fakes.waiting import wait_until

from pipeline.errors import (
    ConfigMismatch,
    PipelineError,
    PromptManagerError,
    UpstreamForbidden,
    UpstreamNotApi,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from pipeline.job import Facts, Reply
from pipeline.settings import BatchSettings, Settings
from pipeline.stage import Delivery, Done, Fail, Outcome
from pipeline.stores.lines import Line
from workers.batches.forbidden import Forbidden
from workers.batches.lines import OpenLine, line_of
from workers.batches.outages import LONG_RUN, LONGEST_PAUSE, PROMPTS, WORKERS, Outages, missed, served

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

KNOWN = "workers that know asked"
DOWN = UpstreamUnavailable("down").fields("dispatch")


def paused() -> Outages:
    outages = Outages()
    assert [outages.failed("gpt-4", number, DOWN, 0.0) for number in range(LONG_RUN)] == [
        *[False] * (LONG_RUN - 1), True
    ]  # fmt: skip
    return outages


def test_a_long_run_of_failures_begins_a_pause_and_one_success_between_them_does_not() -> None:
    outages = Outages()
    for number in range(10 * LONG_RUN):
        assert not outages.failed("gpt-4", number, DOWN, 0.0)
        if not number % (LONG_RUN - 1):
            assert outages.met(["gpt-4"], number) == []
    assert not outages.pausing("gpt-4")
    assert paused().pausing("gpt-4")
    assert not paused().pausing("other")


def test_lines_try_one_at_a_time_at_growing_pauses() -> None:
    outages, now, tried = paused(), 0.0, []
    while now < 120:
        if outages.to_probe(now):
            outages.probe("gpt-4", 1, now)
            tried.append(now)
            assert not outages.failed("gpt-4", 1, DOWN, now)
        now += 0.5
    assert tried == [1, 3, 7, 15, 31, 61, 91]
    assert tried[-1] - tried[-2] == LONGEST_PAUSE


def test_a_try_waits_as_long_as_was_asked_for() -> None:
    outages = paused()
    outages.failed("gpt-4", 1, UpstreamUnavailable("down", retry_after=90.0).fields(), 0.0)
    assert outages.to_probe(89.0) == []
    assert outages.to_probe(90.0) == ["gpt-4"]


def test_only_a_line_that_was_fed_in_a_pause_tells_that_it_is_over() -> None:
    outages = paused()
    assert outages.met(["gpt-4"], 40) == []  # it was under way when the pause began
    outages.probe("gpt-4", 41, 1.0)
    assert outages.met(["gpt-4"], 41) == ["gpt-4"]
    assert not outages


def test_a_line_that_tried_and_got_something_else_ends_nothing_and_two_others_try() -> None:
    outages = paused()
    outages.probe("gpt-4", 41, 1.0)
    assert outages.met([WORKERS, "other"], 41) == []
    assert outages.pausing("gpt-4")
    assert outages.probes == set()
    for number, need in enumerate(outages.to_probe(1.0), 42):
        outages.probe(need, number, 1.0)
    assert outages.probes == {42, 43}
    outages.failed("gpt-4", 42, DOWN, 1.0)
    assert outages.to_probe(LONGEST_PAUSE) == ["gpt-4"]
    assert outages.met([WORKERS, "gpt-4"], 43) == ["gpt-4"]


@pytest.mark.parametrize(
    ("reply", "lacked", "had"),
    [
        (Reply(id="a", facts=Facts(model="m", prompt="changed")), "m", (WORKERS, KNOWN, "m", PROMPTS)),
        (Reply(id="a", error=PromptManagerError("no").fields("resolve")), PROMPTS, (PROMPTS,)),
        (Reply(id="a", error=ConfigMismatch("no").fields("resolve")), KNOWN, (PROMPTS,)),
        (Reply(id="a", error=ConfigMismatch("no").fields("dispatch")), KNOWN, (WORKERS, KNOWN, "")),
        (Reply(id="a", error=DOWN, facts=Facts(model="m")), "m", (WORKERS, KNOWN, "m")),
        (Reply(id="a", error=DOWN), WORKERS, (WORKERS, KNOWN, "")),
    ],
)
def test_a_reply_tells_what_its_line_got_or_lacked(reply: Reply, lacked: str, had: tuple[str, ...]) -> None:
    assert (missed(reply, "asked"), served(reply, "asked")) == (lacked, had)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamUnavailable("down"),
        UpstreamNotApi("maintenance"),
        UpstreamForbidden("expired key"),
        PromptManagerError("no", stage="resolve"),
    ],
)
async def test_an_outage_pauses_a_batch_until_a_line_gets_through(
    server: Server, settings: Settings, error: PipelineError
) -> None:
    mended = False

    async def fail(delivery: Delivery) -> Outcome:
        return await answer(delivery) if mended else Fail(error, Facts(model="gpt-4"))

    stage, desk = ScriptedStage(fail), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        batch_id = await create(desk, lines(200, prompt_id="p") if error.stage else lines(200))

        async def waits() -> bool:
            return (await desk.store.get(batch_id, None)).record.progress.paused == error.code

        await wait_until(waits, timeout=10)
        assert len(stage.seen) < 2 * 20 + LONG_RUN
        mended = True
        began = anyio.current_time()
        state = await ended(desk, batch_id)
    assert (state.record.completed, state.record.failed) == (200, 0)
    assert anyio.current_time() - began < 8
    assert state.record.progress.paused is None


async def test_one_model_that_is_down_does_not_hold_up_the_lines_of_others(server: Server, settings: Settings) -> None:
    mended = False

    async def half(delivery: Delivery) -> Outcome:
        model = delivery.job.model
        if model == "other" and not mended:
            return Fail(UpstreamUnavailable("down"), Facts(model=model))
        return Done(b"{}", Facts(model=model))

    contents = b"".join(line(f"r{number}", model=("gpt-4", "other")[number % 2]) for number in range(300))
    stage, desk = ScriptedStage(half), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        batch_id = await create(desk, contents)

        async def others_are_done() -> bool:
            record = (await desk.store.get(batch_id, None)).record
            return record.completed == 150 and bool(record.progress.paused)

        await wait_until(others_are_done, timeout=15)
        tried = {line_of(delivery.job.id) for delivery in stage.seen if delivery.job.model == "other"}
        assert len(tried) < 3 * 20
        mended = True
        assert (await ended(desk, batch_id)).record.completed == 300


@pytest.mark.parametrize(
    "error", [UpstreamUnavailable("down"), UpstreamTimeout("slow"), PromptManagerError("no", stage="resolve")]
)
async def test_a_line_that_fails_as_often_as_it_may_is_an_error(
    server: Server, settings: Settings, error: PipelineError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.batches.window.LONGEST_REST", 0.1)
    settings = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=20, batch_line_tries=3))

    async def fail(delivery: Delivery) -> Outcome:
        return Fail(error, Facts(model="gpt-4")) if line_of(delivery.job.id) == 7 else await answer(delivery)

    stage, desk = ScriptedStage(fail), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        record = (await ended(desk, await create(desk, lines(20)))).record
    assert (record.completed, record.failed) == (19, 1)
    assert record.progress.failures == {error.code: 1}
    assert len([d for d in stage.seen if line_of(d.job.id) == 7]) == 3


async def test_a_batch_whose_last_line_rests_says_why(server: Server, settings: Settings) -> None:
    async def fail(delivery: Delivery) -> Outcome:
        if line_of(delivery.job.id) != 3:
            return await answer(delivery)
        return Fail(UpstreamUnavailable("down", retry_after=60.0), Facts(model="gpt-4"))

    desk = make_desk(server, settings)
    async with working(server, settings, ScriptedStage(fail)), keeping(desk):
        batch_id = await create(desk, lines(3))

        async def says_why() -> bool:
            progress = (await desk.store.get(batch_id, None)).record.progress
            return (progress.resting, progress.paused) == (1, UpstreamUnavailable.code)

        await wait_until(says_why, timeout=10)


async def test_lines_that_the_provider_forbids_are_errors_when_it_serves_the_others(
    server: Server, settings: Settings
) -> None:
    async def moderate(delivery: Delivery) -> Outcome:
        facts = Facts(model="gpt-4", deployment="a")
        if line_of(delivery.job.id) % 7 == 6:
            return Fail(UpstreamForbidden("moderated"), facts)
        return Done(b"{}", facts)

    stage, desk = ScriptedStage(moderate), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        record = (await ended(desk, await create(desk, lines(20)))).record
    assert (record.completed, record.failed) == (17, 3)
    assert record.progress.failures == {"upstream_forbidden": 3}
    tries = Counter(line_of(delivery.job.id) for delivery in stage.seen)
    assert {tries[6], tries[13], tries[20]} == {2}
    (entry, *_) = await written(desk, record.error_file_id)
    assert entry["response"]["body"]["error"]["message"] == "moderated"  # type: ignore[index]


def test_a_forbidden_line_is_to_blame_once_a_line_fed_with_it_or_after_it_is_served() -> None:
    def fed(number: int, at: float) -> OpenLine:
        made = OpenLine(Line(number, 0, 1, None))
        made.fed_at = at
        return made

    forbidden, line = Forbidden(), fed(1, 10.0)
    assert not forbidden.is_about(line, "a"), "it is tried again in any case"
    forbidden.answered(fed(2, 9.0), "a")
    assert not forbidden.is_about(line, "a"), "the key may have been taken back between the two"
    forbidden.answered(fed(3, 10.0), "b")
    assert not forbidden.is_about(line, "a")
    line.fed_at = 20.0
    forbidden.answered(fed(4, 10.0), "a")
    assert forbidden.is_about(line, "a")
    inherited = fed(5, 0.0)
    assert not forbidden.is_about(inherited, "a")


async def test_an_outage_that_uses_up_the_tries_of_its_lines_still_pauses_the_others(
    server: Server, settings: Settings
) -> None:
    mended = False
    settings = msgspec.structs.replace(settings, batches=BatchSettings(batch_window=20, batch_line_tries=1))

    async def fail(delivery: Delivery) -> Outcome:
        return await answer(delivery) if mended else Fail(UpstreamUnavailable("down"), Facts(model="gpt-4"))

    stage, desk = ScriptedStage(fail), make_desk(server, settings)
    async with working(server, settings, stage), keeping(desk):
        batch_id = await create(desk, lines(200))

        async def waits() -> bool:
            return bool((await desk.store.get(batch_id, None)).record.progress.paused)

        await wait_until(waits, timeout=10)
        mended = True
        record = (await ended(desk, batch_id)).record
    assert record.completed + record.failed == 200
    assert record.failed < 2 * 20 + LONG_RUN
