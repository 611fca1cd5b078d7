"""
Every key promptmill uses in Redis, and how long each lives.

All names carry one hash tag per partition, so a cluster keeps a partition's keys on one node and may route scripts.
"""

from __future__ import annotations

from typing import Final

from pipeline.job import PARTITION

PREFIX: Final = f"pm:{{{PARTITION}}}:"
GROUP: Final = "workers"

REPLIES_TTL_MS: Final = 60_000
LINES_TTL_MS: Final = 86_400_000
"""Of the answers to a batch's lines: as long as a batch has, so that none is lost while nobody collects them."""

ADMITTED_TTL_MS: Final = 3_600_000
UP_TTL_MS: Final = 15_000
BODY_EXTRA_MS: Final = 60_000
"""A body outlives its job's deadline by this much."""

DEAD_LIMIT: Final = 10_000
DEAD_BODY_LIMIT: Final = 25_000
"""Largest body kept with a dead letter, in bytes: with `DEAD_LIMIT` it bounds the stream at about 256 MB."""

DEAD_TEXT_LIMIT: Final = 200
"""Characters of each other fact: names may come from anybody who can write to a stream."""

DELAYED_LIMIT: Final = 10_000
"""Jobs put off in one stage's lane; a further one is answered with an error."""

CANCEL_LIMIT: Final = 100_000
"""Cancellations that are remembered; a job whose own was forgotten may run although its client left."""

DEAD: Final = PREFIX + "dead"
CANCEL: Final = PREFIX + "cancel"
CONSUMERS: Final = PREFIX + "consumers"
"""Sorted set of process names by the end of their registration; the index of the `up:` keys."""

FAMILIES: Final = {
    "jobs:": False,
    "bytes:": False,
    "delayed:": False,
    "body:": True,
    "replies:": True,
    "lines:": True,
    "lease:": True,
    "streamed:": True,
    "cancel": False,
    "up:": True,
    "consumers": False,
    "admitted:": True,
    "dead": False,
}
"""What every key begins with, after the prefix, and whether it has a lifetime; the others are bounded in number."""

PERMANENT: Final = tuple(family for family, expires in FAMILIES.items() if not expires)
"""What may live without a TTL, after the prefix."""


def jobs(stage: str, lane: str) -> str:
    """Return the stream of a stage's lane."""
    return f"{PREFIX}jobs:{stage}:{lane}"


def held_bytes(stage: str, lane: str) -> str:
    """Return the counter of body bytes in a stage's lane, waiting or in flight; gone when the lane is empty."""
    return f"{PREFIX}bytes:{stage}:{lane}"


def delayed(stage: str, lane: str) -> str:
    """Return the sorted set of jobs put off, by due time in ms."""
    return f"{PREFIX}delayed:{stage}:{lane}"


BODIES: Final = PREFIX + "body:"


def body(job_id: str, writer: str) -> str:
    """Return the key of a large body. Every delivery writes under a name of its own: a late zombie spoils nothing."""
    return f"{BODIES}{job_id}:{writer}"


def replies(consumer: str) -> str:
    """Return the reply stream of an ingress process."""
    return f"{PREFIX}replies:{consumer}"


LINES: Final = "lines:"
"""What `reply_to` of a batch's line begins with; the batch follows."""


def lines(batch: str) -> str:
    """Return the stream of answers to a batch's lines."""
    return f"{PREFIX}{LINES}{batch}"


def batch_of(reply_to: str) -> str:
    """Return the batch that answers for `reply_to` go to, empty for those of an ingress process."""
    return reply_to.removeprefix(LINES) if reply_to.startswith(LINES) else ""


def lease(batch: str) -> str:
    """Return the sign of life of a batch's owner."""
    return f"{PREFIX}lease:{batch}"


def answers(reply_to: str) -> tuple[str, int]:
    """Return the stream that answers for `reply_to` go to, and its lifetime in ms."""
    if reply_to.startswith(LINES):
        return PREFIX + reply_to, LINES_TTL_MS
    return replies(reply_to), REPLIES_TTL_MS


def streamed(job_id: str) -> str:
    """Return the mark that some run of this job has sent bytes to its client."""
    return f"{PREFIX}streamed:{job_id}"


def up(consumer: str) -> str:
    """Return the registration of a live process."""
    return f"{PREFIX}up:{consumer}"


def admitted(consumer: str) -> str:
    """Return the number of the last admission batch of an ingress process."""
    return f"{PREFIX}admitted:{consumer}"
