"""Why lines failed: the reason of each, what to do about it, and how many there are of a kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

_ENDED: Final = ("batch_expired", "batch_cancelled")
"""Codes of lines whose batch ended before they had an answer."""

_HINTS: Final = {
    "deadline_exceeded": "raise `batch_line_timeout`, or ask for less in one line",
    "internal_error": "a bug of ours: `promptmill dead list` shows it",
    "prompt_manager_crashed": "look for native crashes and memory in the prompt manager: `promptmill dead list`",
    "prompt_not_found": "check the prompt's id, or add it to its manager",
    "prompt_model_unknown": "add the model the manager chose, or have it choose another",
}
_REFUSED: Final = "the provider refused this request: correct the line"


class Cause(msgspec.Struct, frozen=True):
    """Why a line failed."""

    code: str
    status: int
    """HTTP status; 0 for a line that had no answer when its batch ended."""
    message: str
    hint: str

    @property
    def reason(self) -> str:
        """The code and the message."""
        return f"{self.code}: {self.message}" if self.message else self.code


class Group(msgspec.Struct, kw_only=True):
    """Lines that failed for one reason; `example` is what one of them says."""

    code: str
    status: int | None
    """HTTP status; 0 for lines that had no answer, None where it is not known."""
    count: int = 0
    example: str = ""
    hint: str = ""


class Causes:
    """Failed lines by status and code. `again` is what runs them again: a command, or how it is called."""

    def __init__(self, again: str) -> None:
        self.again = again
        self._groups: dict[tuple[int, str], Group] = {}

    def add(self, entry: dict[str, Any]) -> Cause:
        """Count the line of an error file, and return why it failed."""
        cause = told(entry, self.again)
        group = self._groups.setdefault(
            (cause.status, cause.code),
            Group(code=cause.code, status=cause.status, example=cause.message, hint=cause.hint),
        )
        group.count += 1
        return cause

    @property
    def total(self) -> int:
        """How many lines failed."""
        return sum(group.count for group in self._groups.values())

    def groups(self) -> list[Group]:
        """Return them, the most frequent first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)


def told(entry: dict[str, Any], again: str) -> Cause:
    """Return why the line of an error file failed, and what to do: one that did not run is for `again` to run."""
    response = entry.get("response") or {}
    error = entry.get("error") or (response.get("body") or {}).get("error") or {}
    code = str(error.get("code") or error.get("type") or "unknown")
    status = int(response.get("status_code") or 0)
    hint = error.get("hint") or _HINTS.get(code) or (_REFUSED if 400 <= status < 500 and status != 429 else "")
    if code in _ENDED:
        hint = f"{again} runs only the lines without an answer"
    return Cause(code, status, str(error.get("message") or ""), hint)


def table(groups: Iterable[Group], width: int = 100) -> list[str]:
    """Return the groups as lines for people."""
    lines = []
    for group in groups:
        status = "" if group.status is None else f"  ({group.status or 'no answer'})"
        lines.append(f"{group.count:>9,}  {group.code}{status}  {group.example}"[:width].rstrip())
        if group.hint:
            lines.append(f"{'':>11}{group.hint}")
    return lines
