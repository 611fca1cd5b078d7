"""`python -m chaos`: disturb a whole gateway, and check that nothing was lost."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec
from chaos import running, scenario
from chaos.running import Result

LOG_LINES = 60


@click.command()
@click.option("--seed", type=int, help="Draws what is run, and everything random in it. Default: a new one.")
@click.option("--seconds", default=55.0, show_default=True, help="How much to draw.")
@click.option("--all", "everything", is_flag=True, help="Run every scenario once, the long ones too.")
@click.option("--only", multiple=True, metavar="TEXT", help="Run what has this in its name or faults; repeatable.")
@click.option("--list", "listing", is_flag=True, help="Show the scenarios, and run none.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the results to this file.")
@click.option("--table", type=click.Path(path_type=Path), help="Write them to this file, as a table in Markdown.")
def main(
    seed: int | None,
    seconds: float,
    everything: bool,
    only: tuple[str, ...],
    listing: bool,
    path: Path | None,
    table: Path | None,
) -> None:
    """Run drawn scenarios, every one of them, or those that --only names. Exit codes: 0 all as it must be, 1 not."""
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    found = list(scenario.discover().values())
    if only:
        found = [s for s in found if any(text in f"{s.name} {s.faults}".split() or text in s.name for text in only)]
    elif not everything:
        found = scenario.draw(seed, seconds)
    else:
        found.sort(key=lambda s: repr(s.layout))
    if listing:
        for one in found:
            click.echo(f"{one.name:<44} {one.faults:<10} {one.seconds:>5.0f} s  {one.injected}")
        return
    click.echo(f"seed {seed}: {len(found)} scenarios; again: make chaos SEED={seed}")
    results = anyio.run(functools.partial(running.run, found, seed, _tell))
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode({"seed": seed, "results": results})))
    if table is not None:
        table.write_text("\n".join(_rows(results)))
    sys.exit(_judge(results, seed))


def _tell(result: Result) -> None:
    mark = "FAIL" if result.wrong else "ok"
    figures = "  ".join(f"{name}={value}" for name, value in result.figures.items())
    click.echo(f"{mark:<5}{result.scenario:<44} {result.faults:<10} {result.seconds:>6.1f} s  {figures}")
    for line in result.wrong:
        click.echo(f"     {line}")
    for line in result.log.splitlines()[-LOG_LINES:]:
        click.echo(f"       {line}")


def _rows(results: list[Result]) -> Iterator[str]:
    yield "| scenario | faults | what was done | took | figures |"
    yield "|---|---|---|---|---|"
    for result in results:
        figures = ", ".join(f"{name} {_shown(value)}" for name, value in result.figures.items())
        mark = "**failed** " if result.wrong else ""
        took = f"{result.seconds:.0f} s"
        yield f"| {mark}`{result.scenario}` | {result.faults} | {result.injected} | {took} | {figures} |"
    yield ""


def _shown(value: Any) -> str:
    return " ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _judge(results: list[Result], seed: int) -> int:
    broken = running.known_broken()
    failed = [result.scenario for result in results if result.wrong and result.scenario not in broken]
    healed = [result.scenario for result in results if not result.wrong and result.scenario in broken]
    for name in healed:
        click.echo(f"{name} passes: take it off known_broken.txt")
    for name in failed:
        click.echo(f"failed: {name}; again: make chaos SEED={seed} ONLY='{name}'")
    click.echo(f"{len(results) - len(failed)} of {len(results)} as they must be")
    return 1 if failed or healed else 0


if __name__ == "__main__":
    main()
