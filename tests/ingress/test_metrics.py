"""Samples of several processes, merged into one exposition."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline import metrics


def test_samples_keep_their_process_and_values() -> None:
    metrics.JOBS["dispatch", "live", "done"].inc(3)
    metrics.REQUEST_SECONDS["chat",].observe(0.2)
    before = metrics.snapshot()
    metrics.JOBS["dispatch", "live", "done"].inc()
    text = metrics.render([("a", before), ("b", metrics.snapshot())]).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    wanted = {"stage": "dispatch", "lane": "live", "outcome": "done"}
    samples = [s for s in families["promptmill_jobs"].samples if wanted.items() <= s.labels.items()]
    jobs = {sample.labels["process"]: sample.value for sample in samples}
    assert jobs["b"] - jobs["a"] == 1
    seconds = families["promptmill_request_seconds"]
    assert seconds.type == "histogram"
    assert any(s.name.endswith("_bucket") and s.labels["le"] == "+Inf" for s in seconds.samples)
    assert "process_cpu_seconds" in families
    assert "_created" not in text


@pytest.mark.anyio
async def test_a_long_snapshot_lets_others_have_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, over = 0, False

    async def others() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(metrics, "TURN", 0.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        samples = await metrics.snapshot_in_turns()
        over = True
    assert turns > 10
    names = [[family.name for family in metrics._decode(found)] for found in (samples, metrics.snapshot())]
    assert names[0] == names[1]


def test_a_family_that_two_releases_type_differently_is_shown_once() -> None:
    gauge = msgspec.msgpack.encode([metrics.Family("promptmill_jobs", "Jobs.", "gauge", [])])
    text = metrics.render([("old", metrics.snapshot()), ("new", gauge)]).decode()
    assert text.count("# TYPE promptmill_jobs_total counter") == 1
    assert 'process="new"' not in text


def test_what_does_not_decode_is_left_out() -> None:
    assert metrics.render([("broken", b"\xc1"), ("other", b"\x01")]) == b""


def test_gauges_of_the_fleet_have_no_empty_families() -> None:
    text = metrics.render(
        [(metrics.FLEET, metrics.gauge_snapshot({"backlog": {("resolve", "live"): 2}, "workers": {}}))]
    ).decode()
    assert 'promptmill_backlog{lane="live",process="fleet",stage="resolve"} 2.0' in text
    assert "workers" not in text


def test_counters_are_summed_up_over_processes() -> None:
    metrics.CLAIMS["resolve",].inc(2)
    metrics.REFUSALS["backlog_full", "dispatch"].inc(3)
    metrics.REFUSALS["backlog_full", "resolve"].inc()
    found = metrics.totals([metrics.snapshot(), metrics.snapshot(), b"other"], {"claims": "stage", "refusals": "code"})
    assert found.keys() == {"claims", "refusals"}
    assert found["claims"]["resolve"] == 2 * metrics.CLAIMS["resolve",]._value.get()
    assert found["refusals"]["backlog_full"] >= 8


def test_a_metrics_child_is_made_once() -> None:
    assert metrics.CLAIMS["dispatch",] is metrics.CLAIMS["dispatch",]
