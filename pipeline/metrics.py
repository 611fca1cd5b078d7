"""Every metric there is, by name and labels; a process's samples as bytes, and the fleet's as Prometheus text."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import anyio.lowlevel
import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

FLEET: Final = "fleet"
"""The `process` label of what belongs to no single process."""

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

TURN: Final = 0.001
"""Seconds a snapshot holds the event loop, and a metric more."""

registry: Final = CollectorRegistry(auto_describe=False)
ProcessCollector(registry=registry)


class Children(dict[tuple[str, ...], Any]):
    """The children of one metric by their label values; looking one up costs a third of `labels()`."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        child = self[labels] = self._metric.labels(*labels)
        return child


def _counters(name: str, text: str, *labels: str) -> Children:
    return Children(Counter(f"promptmill_{name}", text, labels, registry=registry))


def _gauges(name: str, text: str, *labels: str) -> Children:
    return Children(Gauge(f"promptmill_{name}", text, labels, registry=registry))


def _histograms(name: str, text: str, *labels: str) -> Children:
    return Children(Histogram(f"promptmill_{name}", text, labels, buckets=SECONDS, registry=registry))


# Labels are a tuple of strings, in this order: `REQUESTS["chat", "200"].inc()`; with one label, `CLAIMS["resolve",]`.
# Their values come from the code or the configuration, never from a request: what clients can choose has no bound.
REQUESTS: Final = _counters("requests", "HTTP requests answered.", "endpoint", "status")
REFUSALS: Final = _counters("refusals", "Requests the ingress refused, by error code and stage.", "code", "stage")
SLOW_CLIENTS: Final = _counters("slow_clients", "Clients given up because they did not read their answer.", "cause")
REQUEST_SECONDS: Final = _histograms("request_seconds", "From the first header to the last byte.", "endpoint")
REQUESTS_IN_FLIGHT: Final = _gauges("requests_in_flight", "Requests being answered.", "kind")
JOBS: Final = _counters("jobs", "Jobs settled, by stage and outcome.", "stage", "lane", "outcome")
JOB_SECONDS: Final = _histograms("job_seconds", "One delivery's time in its stage.", "stage", "lane")
QUEUE_SECONDS: Final = _histograms("queue_seconds", "A job's wait for its stage.", "stage", "lane")
JOBS_IN_FLIGHT: Final = _gauges("jobs_in_flight", "Deliveries held.", "stage", "lane")
DEADLINE_DROPS: Final = _counters("deadline_drops", "Jobs dropped unrun: their deadline passed in the queue.", "stage")
REDELIVERIES: Final = _counters("redeliveries", "Deliveries that were not a job's first.", "stage")
CLAIMS: Final = _counters("claims", "Deliveries taken over from a consumer whose lease ran out.", "stage")
STALE_SETTLES: Final = _counters("stale_settles", "Outcomes dropped: the delivery was no longer ours.", "stage")
DEAD_LETTERS: Final = _counters("dead_letters", "Jobs no consumer could finish.", "stage", "reason")
HOOK_SECONDS: Final = _histograms("prompt_manager_seconds", "One call of a prompt manager.", "manager", "outcome")
ATTEMPTS: Final = _counters("attempts", "Provider calls, by deployment and outcome.", "deployment", "outcome")
ATTEMPT_ERRORS: Final = _counters("attempt_errors", "Provider calls that failed, by code.", "deployment", "code")
ATTEMPT_SECONDS: Final = _histograms("attempt_seconds", "One provider call.", "deployment")
COOLDOWNS: Final = _counters("cooldowns", "Times a deployment was set to rest.", "deployment")
BATCH_PACE: Final = _gauges("batch_pace", "Batch calls a second; +Inf while no limit was met.", "deployment")
BATCH_LIMIT: Final = _gauges("batch_limit", "Batch calls a process may have in flight.", "deployment")
BATCH_REST_SECONDS: Final = _gauges("batch_rest_seconds", "Seconds a deployment rests for batches.", "deployment")
BATCH_ROOM: Final = _gauges("batch_room", "Batch jobs a stage may hold in this process.", "stage")
BATCHES: Final = _counters("batches", "Batches that ended, by their last status.", "status")
BATCHES_IN_HAND: Final = _gauges("batches_in_hand", "Batches a feed process owns, by status.", "status")
BATCHES_UNFINISHED: Final = Gauge(
    "promptmill_batches_unfinished", "Batches that have not ended, as a feed process sees them.", registry=registry
)
BATCH_LINES: Final = _counters("batch_lines", "Lines of batches that got their outcome.", "outcome")
TOKENS: Final = _counters("tokens", "Tokens as the providers count them.", "deployment", "kind")
TASKS: Final = Gauge("promptmill_tasks", "Tasks of the process's event loop.", registry=registry)
REDIS_COMMANDS: Final = _counters("redis_commands", "Commands sent to Redis, by what they were sent for.", "purpose")
REDIS_ERRORS: Final = _counters("redis_errors", "Redis calls that failed, by kind.", "kind")


FLEET_GAUGES: Final = {
    "workers": ("Processes that serve a lane of a stage.", ("stage", "lane")),
    "backlog": ("Jobs nobody has fetched.", ("stage", "lane")),
    "backlog_bytes": ("Bytes of bodies, waiting or in flight.", ("stage", "lane")),
    "pending": ("Jobs in flight.", ("stage", "lane")),
    "delayed": ("Jobs put off.", ("stage", "lane")),
    "oldest_seconds": ("Age of the oldest job, waiting or in flight.", ("stage", "lane")),
    "lag_seconds": ("Age of the oldest job nobody has fetched.", ("stage", "lane")),
    "dead_letters_kept": ("Dead letters there are.", ()),
    "redis_memory_bytes": ("Memory the server uses.", ()),
    "redis_memory_limit_bytes": ("Memory the server may use; 0 without a limit.", ()),
}
"""What is read from Redis for every scrape: name, text, labels."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One line of the exposition."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric and its samples."""

    name: str
    text: str
    type: str
    samples: list[Sample]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Family]).decode


def snapshot() -> bytes:
    """Return this process's samples as they are now, for `render` in another process."""
    return _encode([_family(metric) for metric in registry.collect()])


async def snapshot_in_turns() -> bytes:
    """Return what `snapshot` does, and let others have turns: with 100 deployments it takes 14 ms."""
    families, began = [], time.monotonic()
    for metric in registry.collect():
        families.append(_family(metric))
        if time.monotonic() - began > TURN:
            await anyio.lowlevel.checkpoint()
            began = time.monotonic()
    return _encode(families)


def gauge_snapshot(values: Mapping[str, Mapping[tuple[str, ...], float]]) -> bytes:
    """Return a snapshot of `FLEET_GAUGES`: name → label values → number."""
    families = []
    for name, by_labels in values.items():
        text, labels = FLEET_GAUGES[name]
        full = f"promptmill_{name}"
        samples = [Sample(full, dict(zip(labels, key, strict=True)), value) for key, value in by_labels.items()]
        families.append(Family(full, text, "gauge", samples))
    return _encode([family for family in families if family.samples])


def totals(snapshots: Iterable[bytes], counters: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return counters summed up over processes: name → value of the given label → number, zeros left out."""
    found: dict[str, dict[str, float]] = {name: defaultdict(float) for name in counters}
    for family in (family for samples in snapshots for family in _decoded(samples)):
        name = family.name.removeprefix("promptmill_")
        if name in counters:
            for sample in family.samples:
                found[name][sample.labels.get(counters[name], "")] += sample.value
    return {name: {label: value for label, value in sums.items() if value} for name, sums in found.items()}


def render(snapshots: Iterable[tuple[str, bytes]]) -> bytes:
    """Return Prometheus text of (process name, snapshot) pairs. A snapshot that does not decode is left out."""
    return generate_latest(_Snapshots(snapshots))


class _Snapshots(Collector):
    """The families of several processes, merged by name."""

    def __init__(self, snapshots: Iterable[tuple[str, bytes]]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, with a `process` label on every sample."""
        families: dict[str, Metric] = {}
        for process, samples in self._snapshots:
            for family in _decoded(samples):
                metric = families.setdefault(family.name, Metric(family.name, family.text, family.type))
                if metric.type != family.type:  # an old and a new worker during a rollout: the first one's word counts
                    continue
                for sample in family.samples:
                    metric.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
        yield from families.values()


def _decoded(samples: bytes) -> list[Family]:
    try:
        return _decode(samples)
    except ValueError:  # a process of another release; the others are still worth showing
        return []


def _family(metric: Metric) -> Family:
    # `_created` doubles the number of lines and says only when a process met a label for the first time.
    kept = [Sample(s.name, dict(s.labels), s.value) for s in metric.samples if not s.name.endswith("_created")]
    return Family(metric.name, metric.documentation, metric.type, kept)
