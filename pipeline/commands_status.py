"""The command `status`: what runs, what waits, and what died."""

from __future__ import annotations

import time

import anyio
import click
import msgspec

from pipeline import options, startup
from pipeline.job import LANES, LIVE, serving
from pipeline.transport.client import STAGES
from pipeline.transport.fitness import concerns
from pipeline.transport.overview import Overview, ServerOverview, read_overview
from pipeline.transport.registry import backing_off


@click.command(short_help="Show processes, backlogs and dead letters.")
@options.config()
@options.data_dir()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(config: str | None, data_dir: str | None, as_json: bool) -> int:
    """
    Show processes, backlogs and dead letters.

    The gateway is found by REDIS_URL, by the configuration, or by its data directory.
    Exit codes: 0 every part has a process, 1 one has none, 2 nothing says where Redis is, 3 it cannot be reached.
    """
    overview = anyio.run(read_overview, startup.find_redis(config, data_dir), STAGES)
    if as_json:
        click.echo(msgspec.json.encode(overview))
    else:
        click.echo("\n".join(table(overview)))
    return 1 if absent(overview) else 0


def absent(overview: Overview) -> list[str]:
    """Return the parts of the gateway that no process serves."""
    there = {process.role for process in overview.processes}
    there |= {
        serving(stage, lane) for process in overview.processes for stage in process.stages for lane in process.lanes
    }
    lanes = LANES if "feed" in there else (LIVE,)
    needed = ("ingress", *(serving(stage, lane) for lane in lanes for stage in STAGES))
    return [part for part in needed if part not in there]


def table(overview: Overview) -> list[str]:
    """Return the overview as lines for people."""
    warnings = [f"! {concern}" for concern in concerns(overview.server)]
    lines = [f"redis    {_server(overview.server)}", *warnings, ""]
    lines.append(f"{'PROCESS':<48}{'SERVES':<20}{'PID':>8}  {'UP':>8}  HOST")
    now, resting = time.time() * 1000, backing_off(overview.processes)
    for process in overview.processes:
        lanes = "" if process.lanes == LANES else f" ({', '.join(process.lanes)})"
        serves = ", ".join(process.stages) + lanes if process.stages else process.role
        up = duration(max(0.0, now - process.started) / 1000)
        lines.append(f"{process.consumer:<48}{serves:<20}{process.pid:>8}  {up:>8}  {process.host}")
    lines += [f"(model {name} rests for {wait:.0f} s: its provider is at its limit)" for name, wait in resting.items()]
    lines += [f"(no process for {part}: start `{_starting(part)}`, or `promptmill up`)" for part in absent(overview)]
    lines += ["", f"{'STAGE':<20}{'WAITING':>10}{'IN FLIGHT':>11}{'PUT OFF':>9}{'OLDEST':>10}{'LAG':>10}{'BYTES':>12}"]
    for stage in overview.stages:
        name = f"{stage.stage} ({stage.lane})"
        ages = f"{duration(stage.oldest_seconds):>10}{duration(stage.lag_seconds):>10}"
        lines.append(f"{name:<20}{stage.backlog:>10}{stage.pending:>11}{stage.delayed:>9}{ages}{stage.bytes:>12}")
    more = "   (promptmill dead list)" if overview.dead else ""
    return [*lines, "", f"dead letters  {overview.dead}{more}", *_counts(overview.counts)]


def _starting(part: str) -> str:
    """Return the command that starts what serves a part."""
    commands = {serving(stage, lane): f"worker --lane {lane} {stage}" for lane in LANES for stage in STAGES}
    return f"promptmill {commands.get(part, part)}"


def _server(server: ServerOverview) -> str:
    """Return what is known of the server; nothing for what a managed one does not tell."""
    facts = [server.name, server.persistence, f"{server.eviction} when full" if server.eviction else ""]
    if server.memory:
        limit = f" of {server.memory_limit / 2**20:.0f}" if server.memory_limit else ""
        facts.insert(1, f"{server.memory / 2**20:.0f}{limit} MiB")
    return ", ".join(fact for fact in facts if fact)


def _counts(counts: dict[str, dict[str, float]]) -> list[str]:
    """Return a line for each counter that counted something."""
    lines = [
        f"{name.replace('_', ' '):<16}{', '.join(f'{label} {count:.0f}' for label, count in sorted(found.items()))}"
        for name, found in counts.items()
        if found
    ]
    return ["", "since the processes started", *lines] if lines else []


def duration(seconds: float) -> str:
    """Return `seconds` for people."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
