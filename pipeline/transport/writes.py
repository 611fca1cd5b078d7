"""The writes of a worker process as `write.lua` reads them: pure functions from outcomes to arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

import msgspec

from pipeline.errors import ConfigMismatch, InternalError, PipelineError
from pipeline.job import ErrorFields, Facts, Frame, Job, Reply, encode
from pipeline.stage import Defer, Done, Fail, Forward, Outcome
from pipeline.transport import keyspace
from pipeline.transport.delivery import HeldDelivery

INLINE: Final = 64 * 1024
"""Bodies up to this many bytes travel in the entry; larger ones beside it, by reference."""

Argument = str | bytes | int


class Dead(msgspec.Struct, frozen=True):
    """The job becomes a dead letter, and its client gets `error`."""

    error: PipelineError
    reason: str
    keep_body: bool = False


def bug(error: BaseException) -> Dead:
    """Return the end of a job on which a stage failed."""
    failure = InternalError("promptmill failed on this request", hint="It is kept as a dead letter.")
    return Dead(failure, f"bug: {type(error).__name__}")


class Drop(msgspec.Struct, frozen=True):
    """The job ends without a word: nobody waits for it any more."""


Effect = Outcome | Dead | Drop


class Keys(dict[str, int]):
    """The keys of one script call; looking a key up gives its index, from 1."""

    def __missing__(self, key: str) -> int:
        index = self[key] = len(self) + 1
        return index


class Group:
    """Writes that go out in one script call, with the bodies that must be there before it."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.keys = Keys()
        self.arguments: list[Argument] = []
        self.bodies: list[tuple[str, bytes, int]] = []
        """Key, bytes and lifetime in ms."""
        self.size = 0
        self.count = 0

    def first_frames(self, delivery: HeldDelivery, frames: Sequence[Frame], ttl_ms: int) -> None:
        """Add the frames that start a run, fenced by the ownership of its delivery."""
        job, source, data = delivery.job, delivery.source, encode(frames)
        self._add(
            "O",
            self.keys[keyspace.jobs(source.stage, source.lane)],
            source.entry,
            self.keys[keyspace.streamed(job.id)],
            max(1, ttl_ms),
            self.keys[keyspace.replies(job.reply_to)],
            data,
        )

    def frames(self, reply_to: str, frames: Sequence[Frame]) -> None:
        """Add frames for one ingress process as one entry."""
        self._add("F", self.keys[keyspace.replies(reply_to)], encode(frames))

    def settle(self, delivery: HeldDelivery, effect: Effect, now: int) -> None:
        """Add the settlement of a delivery. `now` is the server's time in ms."""
        source = delivery.source
        stream = keyspace.jobs(source.stage, source.lane)
        self._add(
            "S",
            self.keys[stream],
            self.keys[keyspace.held_bytes(source.stage, source.lane)],
            source.entry,
            source.size,
            self.keys[source.reference] if source.reference else 0,
            # Only a redelivery asks for the mark, and there is none after this.
            self.keys[keyspace.streamed(delivery.job.id)] if delivery.frames or delivery.number > 1 else 0,
            *self._effect(delivery, effect, now),
        )

    def unfenced_reply(self, delivery: HeldDelivery, effect: Effect, now: int) -> None:
        """Add only the reply of `effect`, for a delivery whose group was lost: its client takes the first terminal."""
        self._add("U", *self._reply(delivery, effect, now))

    def _add(self, *arguments: Argument) -> None:
        self.count += 1
        self.arguments.append(len(arguments))
        self.arguments += arguments
        self.size += sum(len(a) for a in arguments if isinstance(a, bytes))

    def _effect(self, delivery: HeldDelivery, effect: Effect, now: int) -> tuple[Argument, ...]:
        match effect:
            case Drop():
                return ("N",)
            case Done() | Fail():
                reply = self._reply(delivery, effect, now)
                return ("R", *reply) if reply[0] else ("N",)
            case Forward(job, body):
                return ("W", *self._forward(delivery, job, body, now))
            case Defer(seconds, job, refusal):
                source = delivery.source
                delayed = self.keys[keyspace.delayed(source.stage, source.lane)]
                due, member = now + int(seconds * 1000), self._delayed_member(delivery, job, now)
                otherwise = self._reply(delivery, Fail(refusal or _too_many_put_off(source.stage), job.facts), now)
                return ("Z", delayed, due, keyspace.DELAYED_LIMIT, member, *otherwise)
            case Dead():
                fields = dead_letter(delivery, effect, self.consumer, now)
                head = (self.keys[keyspace.DEAD], keyspace.DEAD_LIMIT, len(fields), *fields)
                return ("D", *head, *self._reply(delivery, effect, now))
            case _:
                assert_never(effect)

    def _forward(self, delivery: HeldDelivery, job: Job, body: bytes, now: int) -> tuple[Argument, ...]:
        stages = job.stages_left[1:]
        header = encode(msgspec.structs.replace(job, stages_left=stages, since=now))
        stage, lane = stages[0], job.lane
        kind, value = self._body(keyspace.body(job.id, delivery.run), body, job.deadline - now)
        stream, counter = self.keys[keyspace.jobs(stage, lane)], self.keys[keyspace.held_bytes(stage, lane)]
        return stream, counter, header, kind, value, len(body)

    def _delayed_member(self, delivery: HeldDelivery, job: Job, now: int) -> bytes:
        header = encode(msgspec.structs.replace(job, since=now))
        source = delivery.source
        # A referenced body is unlinked with the settlement, so a deferred one is written again under a new name.
        kind, value = self._body(keyspace.body(job.id, delivery.run), delivery.body, job.deadline - now)
        raw = value.encode() if isinstance(value, str) else value
        return b"%08d%b%b%010d%b" % (len(header), header, kind.encode(), source.size, raw)

    def _reply(self, delivery: HeldDelivery, effect: Effect, now: int) -> tuple[Argument, ...]:
        """Return reply stream (0 without one), its lifetime, header, kind of body and body."""
        job = delivery.job
        if not job.reply_to:
            return 0, 0, b"", "b", b""
        reply, body = terminal(delivery, effect)
        kind, value = self._body(keyspace.body(job.id, delivery.run), body, job.deadline - now)
        stream, ttl = keyspace.answers(job.reply_to)
        return self.keys[stream], ttl, encode(reply), kind, value

    def _body(self, key: str, body: bytes, remaining_ms: int) -> tuple[str, bytes | str]:
        if not isinstance(body, bytes):
            raise TypeError(f"a body is bytes, not {type(body).__name__}")
        if len(body) <= INLINE:
            return "b", body
        self.bodies.append((key, body, max(0, remaining_ms) + keyspace.BODY_EXTRA_MS))
        return "r", key


def terminal(delivery: HeldDelivery, effect: Effect) -> tuple[Reply, bytes]:
    """Return the reply that `effect` means for the delivery's client, and its body."""
    job = delivery.job
    error: ErrorFields | None = None
    body, status, content_type, facts = b"", 200, "application/json", job.facts
    match effect:
        case Done():
            body, status, content_type, facts = effect.body, effect.status, effect.content_type, effect.facts
        case Fail(failure, told):
            error = failure.fields(delivery.source.stage)
            facts = told if told != Facts() else facts
        case Dead(failure):
            error = failure.fields(delivery.source.stage)
        case _:
            raise AssertionError(f"{type(effect).__name__} is not a reply")
    if error is not None and job.prompt is not None and not facts.prompt_id:
        facts = msgspec.structs.replace(facts, prompt_id=job.prompt.id)  # its stage did not come to say so
    reply = Reply(
        id=job.id,
        run=delivery.run,
        status=error.status if error else status,
        content_type=content_type,
        frames=delivery.frames,
        error=error,
        facts=facts,
    )
    return reply, body


def dead_letter(delivery: HeldDelivery, dead: Dead, consumer: str, now: int) -> tuple[Argument, ...]:
    """Return the fields of a dead letter: facts only, the body not unless it was asked for."""
    job = delivery.job
    facts: dict[str, Argument] = {
        "job": job.id,
        "stage": delivery.source.stage,
        "reason": dead.reason,
        "deliveries": delivery.number,
        "consumer": consumer,
        "at": now,
        "model": job.model,
        "tenant": job.tenant,
        "operation": job.operation,
        "prompt": job.prompt.id if job.prompt else "",
        "hint": dead.error.hint,
        "batch": keyspace.batch_of(job.reply_to),
    }
    if dead.keep_body and len(delivery.body) <= keyspace.DEAD_BODY_LIMIT:
        facts["body"] = delivery.body
    short = {name: fact[: keyspace.DEAD_TEXT_LIMIT] if isinstance(fact, str) else fact for name, fact in facts.items()}
    return tuple(argument for pair in short.items() for argument in pair)


def _too_many_put_off(stage: str) -> PipelineError:
    return ConfigMismatch(
        f"too many jobs are put off in the {stage} stage: its workers do not know their models",
        hint="Try again later; restart the workers with the configuration of the ingress.",
        retry_after=5.0,
    )
