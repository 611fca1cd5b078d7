"""What is said in the end: how many lines were answered, how fast, and why the others were not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from pipeline.errors import ConfigurationError
from pipeline.startup import REFUSED
from workers.batch_command import figures
from workers.batch_command.causes import Causes, Group, table
from workers.batch_command.gateway import Batch, Tokens
from workers.batch_command.outputs import Targets
from workers.batch_command.places import Place

MOST_ERRORS: Final = 10
"""Errors of a batch that could not run which are shown."""

ALL_ANSWERED: Final = 0
SOME_FAILED: Final = 1


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that has ended."""

    batch: str
    status: str
    total: int
    answered: int
    failed: int
    retries: int
    seconds: int
    lines_per_second: float
    tokens: Tokens
    failures: list[Group]
    output: str | None = None
    errors: str | None = None
    again: str | None = None
    """What runs the lines in `errors` again."""
    reason: str = ""
    """Why the batch failed as a whole, whether or not lines of it ran."""
    answers_in_output: int | None = None
    """Those of earlier batches too."""


def summary(batch: Batch, failures: list[Group] | None = None) -> Summary:
    """Return what came of a batch; the batch itself says less about failures than its error file."""
    said, counts = batch.promptmill, batch.counts
    if failures is None:
        failures = [Group(code=code, status=None, count=n) for code, n in (said.failures if said else {}).items()]
    errors = batch.errors.data if batch.errors else ()
    return Summary(
        batch=batch.id,
        status=batch.status,
        total=counts.total,
        answered=counts.completed,
        failed=counts.failed,
        retries=said.retries if said else 0,
        seconds=batch.seconds,
        lines_per_second=round(batch.done / max(1, batch.seconds), 1),
        tokens=batch.usage or Tokens(),
        failures=failures,
        reason=errors[0].message if errors else "",
    )


def exit_code(ended: Batch) -> int:
    """Return the exit status for a batch that has ended."""
    if ended.refused:
        return REFUSED
    return ALL_ANSWERED if ended.status == "completed" and not ended.counts.failed else SOME_FAILED


def written(batch: Batch, causes: Causes, targets: Targets, answers: int) -> Summary:
    """Return what came of a batch whose results are in files now; the output has so many `answers` in all."""
    return msgspec.structs.replace(
        summary(batch, causes.groups()),
        output=str(targets.output),
        errors=str(targets.errors) if causes.total else None,
        again=causes.again if causes.total else None,
        answers_in_output=answers,
    )


def lines(told: Summary) -> list[str]:
    """Return the summary for people."""
    pace = f"{told.lines_per_second:,.0f}" if told.lines_per_second >= 10 else f"{told.lines_per_second}"
    facts = [f"{told.answered:,} of {told.total:,} lines answered in {figures.clock(told.seconds)} ({pace} lines/s)"]
    if told.tokens.total_tokens:
        given, made = figures.short(told.tokens.input_tokens), figures.short(told.tokens.output_tokens)
        facts.append(f"{figures.short(told.tokens.total_tokens)} tokens ({given} in, {made} out)")
    if told.retries:
        facts.append(figures.counted(told.retries, "retry", "retries"))
    said = [", ".join(facts)]
    if told.failed:
        said += [f"{figures.counted(told.failed, 'line', 'lines')} failed:", *table(told.failures)]
    if told.output and told.answers_in_output:
        said.append(f"answers   {told.output}  ({figures.counted(told.answers_in_output, 'line', 'lines')})")
    if told.errors:
        said.append(f"failures  {told.errors}  ({told.again} runs only these)")
    return [*said, f"batch     {told.batch}  ({told.status}{f': {told.reason}' if told.reason else ''})"]


def refused(
    batch: Batch, name: str, place: Place, number: Callable[[int], int] = lambda line: line
) -> ConfigurationError:
    """Return the error for a batch of which nothing ran; `number` says where a line of it stands in the input."""
    errors = batch.errors.data if batch.errors else ()
    told = []
    for error in errors[:MOST_ERRORS]:
        where = f"line {number(error.line)}: " if error.line else ""
        told.append(f"  {where}{error.message} ({error.code}{f', {error.param}' if error.param else ''})")
    if len(errors) > MOST_ERRORS:
        more = place.command(f"batch status {batch.id} --json")
        told.append(f"  and {len(errors) - MOST_ERRORS} more: {more}")
    return ConfigurationError(
        "\n".join([f"{name} cannot run, and nothing of it has:", *told]), hint="correct it and give the command again"
    )
