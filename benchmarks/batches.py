"""`python -m benchmarks.batches`: one batch through a whole gateway; its rate, and what each process spent on it."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from benchmarks import measure, rig
from benchmarks.slow_upstream import Seen, slow_upstream

CHAT: Final = "/v1/chat/completions"
RUNNING: Final = ("validating", "in_progress", "finalizing")
SAMPLE_EVERY: Final = 1.0
WORTH_TELLING: Final = 0.02
"""Share of the processors that, taken by others, makes figures no measure of this program."""

FULL: Final = 0.95
"""Share of the most calls that were ever in flight from which on the upstream counts as full."""


class Watch(threading.Thread):
    """Notes once a second what memory each process has, and what a slow upstream has seen."""

    def __init__(self, slow_url: str) -> None:
        super().__init__(daemon=True)
        self._pids = {pid: role for role, pids in measure.processes(os.getpid()).items() for pid in pids}
        self._before = {pid: measure.cpu_seconds(pid) for pid in self._pids}
        self._slow_url = slow_url
        self._stolen = measure.stolen_seconds()
        self._began = time.monotonic()
        self._end = threading.Event()
        self.memory: list[dict[str, float]] = []
        self.seen: list[tuple[float, Seen]] = []

    def run(self) -> None:
        """Take samples until `stop`."""
        with httpx2.Client() as http:
            while not self._end.wait(SAMPLE_EVERY):
                self.memory.append(self._sum(measure.rss_bytes, 1 / 2**20))
                if self._slow_url:
                    seen = msgspec.json.decode(http.get(self._slow_url).content, type=Seen)
                    self.seen.append((time.monotonic(), seen))

    def stop(self) -> None:
        """Take no more of them."""
        self._end.set()
        self.join()

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds spent since the beginning, by what the processes do."""
        return self._sum(lambda pid: measure.cpu_seconds(pid) - self._before[pid])

    def stolen(self) -> float:
        """Return the share of the processors that other machines on this host had since the beginning."""
        seconds = time.monotonic() - self._began
        return (measure.stolen_seconds() - self._stolen) / seconds / (os.cpu_count() or 1)

    def peaks(self) -> dict[str, float]:
        """Return the most resident megabytes the kernel has seen, by what the processes do."""
        return self._sum(measure.peak_bytes, 1 / 2**20)

    def full(self) -> dict[str, float]:
        """Return the calls in flight and the answers a second while the slow upstream was full."""
        most = max((seen.in_flight for _, seen in self.seen), default=0)
        full = [(at, seen) for at, seen in self.seen if seen.in_flight >= FULL * most]
        if len(full) < 2:
            return {}
        (begin, first), (end, last) = full[0], full[-1]
        return {
            "most_in_flight": last.most,
            "in_flight": sum(seen.in_flight for _, seen in full) / len(full),
            "answers_a_second": (last.answered - first.answered) / (end - begin),
        }

    def _sum(self, measured: Any, unit: float = 1.0) -> dict[str, float]:
        sums: Counter[str] = Counter()
        for pid, role in self._pids.items():
            sums[role] += measured(pid) * unit
        return dict(sums)


def write_input(path: Path, lines: int, model: str, prompt: str) -> None:
    """Write a batch's input."""
    extra = {"prompt_id": prompt} if prompt else {}
    with path.open("w") as file:
        for number in range(lines):
            body = {"model": model, "messages": [{"role": "user", "content": f"hello {number}"}], **extra}
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}) + "\n")


def run(http: httpx2.Client, path: Path) -> dict[str, Any]:
    """Run a batch to its end; its `seconds` are those from its creation on, validation included."""
    began = time.monotonic()
    with path.open("rb") as file:
        uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", file)}).json()
    figures: dict[str, Any] = {"upload_seconds": time.monotonic() - began}
    began = time.monotonic()
    wanted = {"input_file_id": uploaded["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = http.post("/v1/batches", json=wanted).json()
    while batch["status"] in RUNNING:
        time.sleep(0.25)
        batch = http.get(f"/v1/batches/{batch['id']}").json()
        if batch["status"] != "validating":
            figures.setdefault("validation_seconds", time.monotonic() - began)
    figures["seconds"] = time.monotonic() - began
    return {**figures, "status": batch["status"], "counts": batch["request_counts"]}


def measured(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Return what a batch took."""
    path = directory / "in.jsonl"
    write_input(path, options.lines, options.model, "1234" if options.prompt else "")
    wanted = {
        "batch_window": options.window,
        "dispatch_slots": options.slots,
        "prompt_slots": options.prompt_slots,
    }
    settings = {name: value for name, value in wanted.items() if value}
    with ExitStack() as stack:
        url = stack.enter_context(slow_upstream(options.latency) if options.latency else rig.upstream(directory))
        gateway = stack.enter_context(rig.gateway(directory, url, f"promptmill_settings: {json.dumps(settings)}\n"))
        http = stack.enter_context(httpx2.Client(base_url=gateway.url, timeout=600))
        watch = Watch(url if options.latency else "")
        watch.start()
        figures = run(http, path)
        watch.stop()
        return {
            **figures,
            **settings,
            "lines": options.lines,
            "latency": options.latency,
            "lines_a_second": options.lines / figures["seconds"],
            "stolen": watch.stolen(),
            "cpu_us_a_line": {role: cpu / options.lines * 1e6 for role, cpu in watch.cpu().items()},
            "peak_mb": watch.peaks(),
            "resident_mb": watch.memory,
            "full": watch.full(),
        }


def report(figures: dict[str, Any]) -> None:
    """Print the figures for a reader."""
    print(
        f"{figures['status']} {figures['counts']} in {figures['seconds']:.1f} s: "
        f"{figures['lines_a_second']:,.0f} lines/s; upload {figures['upload_seconds']:.1f} s, "
        f"validation {figures['validation_seconds']:.1f} s"
    )
    if full := figures["full"]:
        print(
            f"{full['most_in_flight']} calls in flight at most; while full {full['in_flight']:,.0f}, and "
            f"{full['answers_a_second']:,.0f} answers/s, "
            f"{full['answers_a_second'] * figures['latency'] / full['most_in_flight']:.0%} of concurrency / latency"
        )
    if figures["stolen"] > WORTH_TELLING:
        print(
            f"{figures['stolen']:.0%} of the processors went to other machines on this host: it had only what was left"
        )
    for role, cpu in sorted(figures["cpu_us_a_line"].items()):
        print(f"{role:>16} {cpu:7.1f} us of CPU a line, {figures['peak_mb'][role]:6.0f} MB at most")
    print(f"{'all':>16} {sum(figures['cpu_us_a_line'].values()):7.1f} us of CPU a line")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--window", type=int, default=0, help="batch_window; 0: the default")
    parser.add_argument("--slots", type=int, default=0, help="dispatch_slots; 0: the default")
    parser.add_argument("--prompt-slots", type=int, default=0, help="prompt_slots; 0: the default")
    parser.add_argument("--model", default="gpt-4")
    parser.add_argument("--prompt", action="store_true", help="send every line through a prompt manager")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds the upstream takes for a call")
    parser.add_argument("--json", action="store_true", help="print every figure, memory by the second among them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measured(options, Path(name))
    print(json.dumps(figures)) if options.json else report(figures)


if __name__ == "__main__":
    main()
