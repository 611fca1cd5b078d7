"""A provider that fails in every way there is: each client gets the error it should, and no slot stays taken."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import msgspec
from chaos.arena import Arena
from chaos.gauges import no_slot_is_taken
from chaos.load import Outcome
from chaos.scenario import Verdict, scenario
from chaos.tight import DISPATCH_SLOTS, PROVIDER_TIMEOUT, RESPONSE_BYTES, TIGHT
from chaos.witness import named
from fakes.upstream import (
    CUT,
    HANG,
    Answer,
    Received,
    ScriptedUpstream,
    chunk,
    completion,
    drop,
    failure,
    gzip_bomb,
    hang,
    raw,
    redirect,
    reply,
    sse,
)
from fakes.waiting import wait_until

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
OWN_TIME = 5.0
"""Seconds all of it takes itself, on a busy machine."""
NEIGHBOURS = 20
ASKED = 2
"""Requests of each kind for each way to fail."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to fail, and what clients get: `status` and `code`."""

    status: int
    code: str
    answer: Answer = Answer(())
    """Without steps: the model says what fails, and the provider does not come to see the request."""
    kinds: tuple[str, ...] = ("plain", "stream")
    fields: Mapping[str, Any] = {}
    """Of the request."""


IMPATIENT = {"model": "impatient"}
GARBLED = {"status": 502, "code": "upstream_garbled"}
LOST = {"status": 502, "code": "upstream_cut"}
DOWN = {"status": 502, "code": "upstream_unavailable"}
BUSY = {"status": 503, "code": "upstream_unavailable"}
LIMITED = {"status": 429, "code": "upstream_rate_limited"}
LATE = {"status": 504, "code": "upstream_timeout", "fields": IMPATIENT}
BEGUN = {"kinds": ("stream",)}
WHOLE = {"kinds": ("plain",)}

WAYS: Mapping[str, Way] = {
    "connection refused": Way(**DOWN, fields={"model": "refused"}),
    "no TLS": Way(**DOWN, fields={"model": "tls"}),
    "closes before it answers": Way(**DOWN, answer=drop()),
    "hangs before the head": Way(**LATE, answer=hang()),
    "hangs in the body": Way(**LATE, **WHOLE, answer=raw(HEAD + b"{", HANG)),
    "drips": Way(**LATE, **WHOLE, answer=raw(HEAD, *itertools.chain(*([b" ", 0.4] for _ in range(100))))),
    "hangs in the stream": Way(**LATE, **BEGUN, answer=sse(chunk("some"), done=False, then=HANG)),
    "drips a stream": Way(**LATE, **BEGUN, answer=sse(*map(chunk, "abc"), between=4 * PROVIDER_TIMEOUT)),
    "429": Way(**LIMITED, answer=failure(429)),
    "429 and says when": Way(**LIMITED, answer=failure(429, headers={"retry-after": "7"})),
    "500": Way(**DOWN, answer=failure(500)),
    "502 in HTML": Way(**DOWN, answer=reply(b"<html>bad gateway", 502, {"content-type": "text/html"})),
    "503": Way(**BUSY, answer=failure(503)),
    "529": Way(**BUSY, answer=failure(529)),
    "400": Way(status=400, code="not_like_this", answer=failure(400, code="not_like_this")),
    "401": Way(status=502, code="upstream_auth_failed", answer=failure(401)),
    "an error under 200": Way(**GARBLED, answer=reply({"error": {"message": "no", "code": "overloaded"}})),
    "a page": Way(status=502, code="upstream_not_api", answer=reply(b"<html>welcome")),
    "a body cut short": Way(**LOST, **WHOLE, answer=raw(HEAD + b'{"id"', CUT)),
    "over the limit": Way(**GARBLED, **WHOLE, answer=reply(completion("x" * (RESPONSE_BYTES + 1)))),
    "a bomb": Way(**GARBLED, **WHOLE, answer=gzip_bomb(200 * RESPONSE_BYTES)),
    "a stream cut short": Way(**LOST, **BEGUN, answer=sse(chunk("some"), b'data: {"choi', done=False, then=CUT)),
    "a stream without an end": Way(**GARBLED, **BEGUN, answer=sse(chunk("some"), done=False)),
    "not JSON in a stream": Way(**GARBLED, **BEGUN, answer=sse(chunk("some"), b"data: {oops}\n\n")),
    "an error in a stream": Way(**DOWN, **BEGUN, answer=sse(chunk("some"), {"error": {"message": "no"}}, done=False)),
}


def failing(usual: Callable[[Received], Answer], ways: Mapping[str, Answer]) -> Callable[[Received], Answer]:
    """Answer those that name a way to fail in `user` accordingly, all others as usual."""
    return lambda received: ways.get(received.json.get("user", "")) or usual(received)


@scenario(
    "provider-fails-in-every-way",
    "F22",
    f"{len(WAYS) + 1} ways to fail, all at the same time, among {NEIGHBOURS} requests that are answered",
    layout=TIGHT,
    seconds=8,
)
async def every_way(arena: Arena, chance: random.Random) -> Verdict:
    """Every client of a failing provider gets its error, in time; nobody else notices, no slot or connection stays."""
    wanted = [(name, kind) for name, way in WAYS.items() for kind in way.kinds for _ in range(ASKED)]
    chance.shuffle(wanted)
    async with ScriptedUpstream() as elsewhere:
        answers = {name: way.answer for name, way in WAYS.items() if way.answer.steps}
        answers["redirect"] = redirect(elsewhere.url)
        arena.witness.upstream.default = failing(arena.witness.upstream.default, answers)
        ends = await arena.load.together(
            *((kind, {**WAYS[name].fields, "user": name}) for name, kind in wanted),
            *(("", {}) for _ in range(NEIGHBOURS)),
            *(("plain", {"user": "redirect"}) for _ in range(ASKED)),
        )
        assert not elsewhere.connections, "a redirect was followed"
    redirected = [ends.pop() for _ in range(ASKED)]
    asked = list(zip(wanted, ends, strict=False))
    wrong = [f"{name}: {end}" for (name, kind), end in asked if not _is(WAYS[name], kind, end)]
    assert not wrong, wrong
    assert all(end.code == "upstream_not_api" for end in redirected), redirected
    assert all(end.whole for end in ends[len(wanted) :]), "a neighbour was harmed"
    said = {end.retry_after for (name, _), end in asked if name == "429 and says when"}
    assert said == {"7"}, said
    await no_slot_is_taken(arena)
    arena.witness.takes = PROVIDER_TIMEOUT + 1
    again = await arena.load.burst(2 * DISPATCH_SLOTS, "plain")
    begun = [received.time for received in arena.witness.received[-len(again) :]]
    assert max(begun) - min(begun) < arena.witness.takes, "some slots did not come back: a call had to wait for another"
    return Verdict(codes=frozenset(end.code for end in ends if end.code), within=PROVIDER_TIMEOUT + OWN_TIME)


def _is(way: Way, kind: str, end: Outcome) -> bool:
    """Whether a client got the error of a way: under its status, or within the stream that had begun."""
    begun = kind == "stream" and "stream" in way.kinds and "plain" not in way.kinds
    return (end.status, end.code) == (200 if begun and end.text else way.status, way.code)


RETRIES = 3
CURVED = 120
"""Requests whose pauses are looked at: their means are within 6 % of the curve's, nearly always."""
FIRST_PAUSE = 0.5
"""Seconds the first pause may have at most; each further one may have twice as many."""
NOISE = 0.15
"""Seconds a call comes later than it was due, on a busy machine."""


@scenario(
    "provider-retry-curve",
    "F22",
    f"a provider that answers 500: {CURVED} requests, {RETRIES} retries each",
    layout=TIGHT,
    seconds=10,
)
async def retry_curve(arena: Arena, chance: random.Random) -> Verdict:
    """Attempts are as many as were asked for, and their pauses follow the curve within a fifth."""
    usual = arena.witness.upstream.default
    arena.witness.upstream.default = failure(500)
    requests = [("plain", {"num_retries": RETRIES}) for _ in range(CURVED)]
    ends = await arena.load.together(*requests)
    assert {(end.status, end.code) for end in ends} == {(502, "upstream_unavailable")}, arena.load.codes
    assert {end.headers["x-promptmill-attempts"] for end in ends} == {str(RETRIES + 1)}
    times: dict[str, list[float]] = {}
    for received in arena.witness.received:
        times.setdefault(named(received), []).append(received.time)
    assert {len(calls) for calls in times.values()} == {RETRIES + 1}
    means = []
    for number in range(RETRIES):
        longest = FIRST_PAUSE * 2**number
        pauses = [calls[number + 1] - calls[number] for calls in times.values()]
        means.append(sum(pauses) / len(pauses))
        assert 0.8 * longest / 2 < means[-1] < 1.2 * longest / 2 + NOISE, f"pause {number + 1}: {means[-1]:.2f} s"
    arena.witness.upstream.default = usual
    await no_slot_is_taken(arena)
    return Verdict(
        codes=frozenset({"upstream_unavailable"}),
        again=CURVED * RETRIES,
        figures={"mean_pauses_s": [round(mean, 2) for mean in means]},
    )


LIMITED_FOR = 5.0
COOLDOWN = 5.0
"""Seconds a deployment rests: the default of `cooldown_time`."""
AT_ONCE = 2.0
"""Seconds in which every client has its answer, on a busy machine: less than any rest."""
EVERY = 0.05
TRIED_AT_FIRST = 40
"""Calls under way before the first refusal was read, in two processes with two deployments."""


@scenario(
    "provider-limits-all-deployments",
    "F23",
    f"both deployments of a model answer 429 for {LIMITED_FOR:.0f} s, with {1 / EVERY:.0f} requests a second",
    layout=TIGHT,
    seconds=14,
)
async def all_limited(arena: Arena, chance: random.Random) -> Verdict:
    """Clients hear at once when to come back, the provider is let alone, and is asked again when it may be."""
    usual = arena.witness.upstream.default
    arena.witness.upstream.default = failure(429, headers={"retry-after": "2"})
    began = time.monotonic()
    over = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: arena.load.steady(1 / EVERY, over, "plain", model="pair"))
        await anyio.sleep(LIMITED_FOR)
        over.set()
    ends = list(arena.load.outcomes)
    calls = len(arena.witness.received)
    assert {(end.status, end.code) for end in ends} == {(429, "upstream_rate_limited")}, arena.load.codes
    assert all(1 <= int(end.retry_after) <= COOLDOWN for end in ends), {end.retry_after for end in ends}
    assert calls <= TRIED_AT_FIRST, f"{calls} calls of a provider that is at its limit"
    arena.witness.upstream.default = usual

    async def answered() -> bool:
        return (await arena.load.one("plain", model="pair")).whole

    await wait_until(answered, timeout=COOLDOWN + OWN_TIME, every=0.2)
    recovered = time.monotonic() - began
    return Verdict(
        codes=frozenset({"upstream_rate_limited"}),
        within=AT_ONCE,
        figures={"refused": len(ends), "calls": calls, "answered_after_s": round(recovered, 1)},
    )
