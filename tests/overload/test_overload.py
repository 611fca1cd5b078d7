"""Three times the load a gateway can carry, and clients that do not read: short forms of benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.gateways import environment

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


def measured(*words: str) -> dict[str, Any]:
    """Run a benchmark and return its figures."""
    command = [sys.executable, "-m", *words, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("bound", "longest_wait"),
    [
        (("--backlog", "30"), 2.0),  # 0.15 s of work: refused by the length of the queue
        (("--backlog", "10000", "--timeout", "4"), 6.0),  # refused by the wait, or else every answer comes too late
    ],
)
def test_under_three_times_the_load_the_workers_stay_busy_and_the_rest_is_refused_at_once(
    bound: tuple[str, ...], longest_wait: float
) -> None:
    figures = measured("benchmarks.overload", "--seconds", "6", "--after", "3", *bound)
    assert figures["goodput"] > 0.6
    assert figures["statuses"]["200"] + figures["statuses"]["429"] > 0.8 * sum(figures["statuses"].values())
    assert figures["statuses"]["429"] > figures["statuses"]["200"] / 2
    assert figures["admitted"]["p50"] < longest_wait  # of all: a busy machine may hold a few up
    assert figures["refused"]["p50"] < 0.5
    assert 1 <= figures["retry_after"]["p50"] <= 60
    assert figures["recovered"] < 3
    for role, (first, last) in figures["rss_mb"].items():
        assert last - first < 20, role


def test_clients_that_do_not_read_are_cut_and_the_others_notice_nothing() -> None:
    words = ("--clients", "24", "--seconds", "10", "--rate", "25", "--unread", "8MiB")
    figures = measured("benchmarks.slow_readers", *words)
    assert 0 < figures["calls_cancelled_after"] < 10
    assert figures["rss_most_mb"] - figures["rss_before_mb"] < 60
    assert figures["delay_beside"]["p50"] < 0.5
