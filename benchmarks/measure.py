"""Measuring: a load from wrk, and what every process spent on it according to the kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Final

TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")

WRK_SCRIPT: Final = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[%s]==]
done = function(summary, latency)
  io.write(string.format('RESULT {"requests":%%d,"seconds":%%.6f,"failed":%%d,"p50":%%.3f,"p99":%%.3f}\\n',
    summary.requests, summary.duration / 1e6,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
      + summary.errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


def load(
    url: str, body: dict[str, Any], connections: int, seconds: float, directory: Path, path: str = ""
) -> dict[str, Any]:
    """Load `url` with POSTs of `body` and return requests, seconds, failed, and p50 and p99 in ms."""
    script = directory / "load.lua"
    text = WRK_SCRIPT % json.dumps(body)
    script.write_text(text.replace("/v1/chat/completions", path) if path else text)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
        url,
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk said nothing that could be read: {output[-500:]}")
    result: dict[str, Any] = json.loads(found[1])
    result["rps"] = result["requests"] / result["seconds"]
    return result


def processes(root: int) -> dict[str, list[int]]:
    """Return the descendants of `root` by what they do: a stage, ingress, feed, server, supervisor or upstream."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
    found: dict[str, list[int]] = {}
    for pid in parents:
        above = pid
        while above not in (0, 1, root):
            above = parents.get(above, 0)
        if above == root:
            found.setdefault(_role(pid, root), []).append(pid)
    return found


def _role(pid: int, root: int) -> str:
    if pid == root:
        return "supervisor"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    if "nginx" in words or "upstream" in words:
        return "upstream"
    for role in ("ingress", "resolve", "dispatch", "feed"):
        if re.search(rf"\b{role}\b", words.rpartition("/")[2]):
            return f"{role} (batch)" if "--lane batch" in words else role
    return "server" if "-server" in words else "supervisor"


def cpu_seconds(pid: int) -> float:
    """Return user and system time a process has spent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds() -> float:
    """Return the CPU seconds that all processors of the machine have spent on anything."""
    user, nice, system, _, _, *interrupts = _machine()[:7]
    return (user + nice + system + sum(interrupts)) / TICKS


def stolen_seconds() -> float:
    """Return the CPU seconds that were wanted here and that other machines on the same host had (steal, proc(5))."""
    return _machine()[7] / TICKS


def _machine() -> list[int]:
    """Return the ticks of all processors: user, nice, system, idle, iowait, irq, softirq, steal … (proc(5))."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]


def rss_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def peak_bytes(pid: int) -> int:
    """Return the most resident memory a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def redis_commands(url: str) -> float:
    """Return how many commands all processes have sent to Redis, as they count them themselves."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("promptmill_redis_commands")
    )
