"""`python -m benchmarks`: one run, side by side, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import measure, rig

MESSAGES = [{"role": "user", "content": "hi"}]
PLAIN = {"model": "gpt-4", "messages": MESSAGES}
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "prompt_id": {**PLAIN, "prompt_id": "1234"},
    "stream": {**PLAIN, "model": "streamed", "stream": True},
    "stream + prompt_id": {**PLAIN, "model": "streamed", "stream": True, "prompt_id": "1234"},
}
ROLES = ("ingress", "resolve", "dispatch", "server")


def main() -> int:
    """Measure and print; returns the exit status."""
    options = _options()
    for name in rig.PACKAGES:
        rig.program(name)
    rows: list[dict[str, Any]] = []
    connections = [int(c) for c in options.connections.split(",")]
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as name:
        directory = Path(name)
        with rig.upstream(directory) as upstream:
            with rig.bare_starlette(directory) as bare:
                for count in connections:
                    rows.append(
                        _row("upstream alone", count, measure.load(upstream, PLAIN, count, options.seconds, directory))
                    )
                    rows.append(
                        _row("starlette alone", count, measure.load(bare, PLAIN, count, options.seconds, directory))
                    )
            with rig.prototype(directory, upstream) as prototype:
                measure.load(prototype, PLAIN, 16, 1, directory)  # warm
                for count in connections:
                    result = measure.load(prototype, PLAIN, count, options.seconds, directory)
                    rows.append(_row("prototype, two stages", count, result))
            with rig.gateway(directory, upstream) as gateway:
                measure.load(gateway.url, SCENARIOS["prompt_id"], 16, 2, directory)  # warm
                for label, body in SCENARIOS.items():
                    if options.only and label not in options.only:
                        continue
                    rows += [
                        _gateway_row(gateway, label, body, count, options.seconds, directory) for count in connections
                    ]
    _print(rows)
    _save(rows, options.json)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (default: 5)")
    parser.add_argument("--connections", default="1,16,64,256", help="concurrent connections, comma-separated")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="measure only this; may be repeated")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/latest.json"), help="where the figures go"
    )
    return parser.parse_args()


def _row(subject: str, connections: int, result: dict[str, Any]) -> dict[str, Any]:
    return {"subject": subject, "connections": connections, **result}


def _gateway_row(
    gateway: rig.Gateway, label: str, body: dict[str, Any], connections: int, seconds: float, directory: Path
) -> dict[str, Any]:
    found = measure.processes(gateway.pid)
    before = {role: sum(map(measure.cpu_seconds, pids)) for role, pids in found.items()}
    time.sleep(2.5)  # every process publishes its counters once in two seconds
    commands = measure.redis_commands(gateway.url)
    result = measure.load(gateway.url, body, connections, seconds, directory)
    spent = {role: sum(map(measure.cpu_seconds, pids)) - before[role] for role, pids in found.items()}
    time.sleep(2.5)
    commands = measure.redis_commands(gateway.url) - commands
    requests = max(1, result["requests"])
    return {
        **_row(f"promptmill, {label}", connections, result),
        "cpu_us": {role: 1e6 * seconds_spent / requests for role, seconds_spent in spent.items()},
        "commands": commands / requests,
        "rss_mb": {role: sum(map(measure.rss_bytes, pids)) / 2**20 for role, pids in found.items()},
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{os.cpu_count()} cores shared by load, upstream, Redis and promptmill; CPU in µs a request")
    for column in ("", "conn", "req/s", "p50 ms", "p99 ms", "failed", "redis cmds", *ROLES, "CPU sum", "of prototype"):
        table.add_column(column, justify="left" if not column else "right")
    floor = {row["connections"]: row["rps"] for row in rows if row["subject"].startswith("prototype")}
    for row in rows:
        cpu = row.get("cpu_us", {})
        table.add_row(
            row["subject"],
            str(row["connections"]),
            f"{row['rps']:,.0f}",
            f"{row['p50']:.2f}",
            f"{row['p99']:.2f}",
            str(row["failed"]),
            f"{row['commands']:.2f}" if cpu else "",
            *(f"{cpu[role]:.0f}" if role in cpu else "" for role in ROLES),
            f"{sum(cpu.values()):.0f}" if cpu else "",
            f"{row['rps'] / floor[row['connections']]:.0%}" if row["connections"] in floor else "",
        )
    Console(width=160).print(table)
    for row in rows[-1:]:
        if "rss_mb" in row:
            print("memory at the end, MB: " + ", ".join(f"{role} {mb:.0f}" for role, mb in row["rss_mb"].items()))


def _save(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"figures: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
