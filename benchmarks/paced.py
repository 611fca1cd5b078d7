"""`python -m benchmarks.paced`: a batch against an upstream limited to N calls a minute; what it uses and wastes."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2

from benchmarks import limited, rig, upstreams
from benchmarks.batches import CHAT, write_input


def limited_upstream(options: argparse.Namespace) -> AbstractContextManager[str]:
    """Run the limited upstream and yield its URL."""
    facts = ("--kind", options.kind, "--rpm", options.rpm, "--latency", options.latency)
    return upstreams.running("limited", *facts)


def counts(url: str) -> tuple[int, int]:
    """Return how many calls the upstream accepted and refused."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        accepted, refused = json.load(answer)
    return accepted, refused


def create(http: httpx2.Client, path: Path) -> None:
    """Make a batch."""
    with path.open("rb") as file:
        uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", file)}).json()
    wanted = {"input_file_id": uploaded["id"], "endpoint": CHAT, "completion_window": "24h"}
    http.post("/v1/batches", json=wanted).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rpm", type=int, default=6000)
    parser.add_argument("--kind", choices=sorted(limited.LIMITERS), default="window")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an accepted call takes")
    parser.add_argument("--minutes", type=int, default=3)
    parser.add_argument("--dispatch", type=int, default=1, help="dispatch processes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = directory / "in.jsonl"
        write_input(path, options.rpm * (options.minutes + 2), "gpt-4", "")
        scale = ("--scale", f"dispatch-batch={options.dispatch}")
        with limited_upstream(options) as url, rig.gateway(directory, url, "", *scale) as gateway:
            with httpx2.Client(base_url=gateway.url, timeout=120) as http:
                create(http, path)
            while not sum(counts(url)):
                time.sleep(0.01)
            began = time.monotonic()
            before = (0, 0)
            for minute in range(1, options.minutes + 1):
                time.sleep(max(0.0, began + 60 * minute - time.monotonic()))
                accepted, refused = counts(url)
                done, wasted = accepted - before[0], refused - before[1]
                before = accepted, refused
                print(f"minute {minute}: {done} accepted, {wasted} refused", flush=True)
    share, waste = accepted / options.rpm / options.minutes, refused / (accepted + refused)
    print(f"{options.kind} {options.rpm} rpm, {options.latency} s: {share:.1%} of the limit used, {waste:.2%} wasted")


if __name__ == "__main__":
    main()
