"""The Procfile: which processes make up the gateway, and which file says so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Final

import msgspec

from pipeline.errors import ConfigurationError
from pipeline.job import LANES

OURS: Final = "promptmill"

_WITH_VALUE: Final = frozenset(["--lane", "--config", "-c", "--data-dir"])
"""Options of a worker with a word after them."""

_LINE: Final = re.compile(r"^([A-Za-z0-9_-]+):\s*(.+)$")
_SHELL: Final = frozenset(["&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1"])


class Procfile(msgspec.Struct, frozen=True, kw_only=True):
    """The processes to run, by name, and why this file was chosen over another (empty when there was no other)."""

    commands: Mapping[str, str]
    source: str
    notice: str = ""

    def words(self, name: str, environment: Mapping[str, str]) -> list[str]:
        """Return the command of `name` as words; `$NAME` stands for a variable. No shell reads it."""
        return [Template(word).safe_substitute(environment) for word in _split(name, self.commands[name], self.source)]

    def part(self, name: str) -> str:
        """Return what `name` runs of the gateway: `ingress`, `worker`, another sub-command, or an empty text."""
        words = _split(name, self.commands[name], self.source)
        return words[1] if words[0] == OURS and len(words) > 1 else ""

    def stages(self, name: str) -> tuple[str, ...]:
        """Return the stages that `name` works on; none unless it is a worker."""
        if self.part(name) != "worker":
            return ()
        words = self._arguments(name)
        values = {after for option, after in pairwise(words) if option in _WITH_VALUE}
        return tuple(word for word in words if re.fullmatch(r"[a-z]+", word) and word not in values)

    def lanes(self, name: str) -> tuple[str, ...]:
        """Return the lanes that the worker `name` serves."""
        words = self._arguments(name)
        return (
            tuple(lane for lane in LANES if ("--lane", lane) in pairwise(words) or f"--lane={lane}" in words) or LANES
        )

    def _arguments(self, name: str) -> list[str]:
        return _split(name, self.commands[name], self.source)[2:]


def choose(explicit: str | None, directory: Path) -> Procfile:
    """
    Return `explicit`, else the Procfile in `directory` if it is one of ours, else the packaged one.

    Ours means that every command starts with `promptmill `: another program's Procfile is never run by accident.
    Raises ConfigurationError.
    """
    if explicit is not None:
        try:
            return parse(Path(explicit).read_text(), explicit)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the Procfile {explicit} cannot be read ({error}); correct --procfile") from None
    beside = directory / "Procfile"
    try:
        found = parse(beside.read_text(), str(beside))
    except FileNotFoundError:
        return packaged()
    except (OSError, UnicodeDecodeError, ConfigurationError):
        return packaged(
            f"{beside} is not run: it is not a Procfile of promptmill's; --procfile {beside} runs it anyway"
        )
    foreign = next((name for name, command in found.commands.items() if not command.startswith(OURS + " ")), None)
    if foreign is None:
        return found
    return packaged(
        f"{beside} is not run: its process {foreign!r} is not promptmill's. --procfile {beside} runs it anyway"
    )


def packaged(notice: str = "") -> Procfile:
    """Return the Procfile that comes with promptmill."""
    text = resources.files("pipeline").joinpath("Procfile").read_text()
    return msgspec.structs.replace(parse(text, "the packaged Procfile"), notice=notice)


def parse(text: str, source: str) -> Procfile:
    """Read a Procfile: `name: command` a line, `#` begins a comment line. Raises ConfigurationError."""
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.match(line)
        if found is None:
            raise ConfigurationError(f"{source}:{number}: {line!r} is not a process; write `name: promptmill …`")
        if found[1] in commands:
            raise ConfigurationError(f"{source}:{number}: a second process {found[1]!r}; give it another name")
        _split(found[1], found[2], f"{source}:{number}")
        commands[found[1]] = found[2]
    if not commands:
        raise ConfigurationError(f"{source} names no process; write `name: promptmill …`, or delete it")
    return Procfile(commands=commands, source=source)


def scales(wanted: Iterable[str], procfile: Procfile) -> dict[str, int]:
    """Return how many of each process to run, one unless `wanted` (`NAME=N`) says more. Raises ConfigurationError."""
    counts = dict.fromkeys(procfile.commands, 1)
    for item in wanted:
        name, equals, number = item.partition("=")
        if not equals or not number.isdecimal() or int(number) > 1000:
            raise ConfigurationError(f"--scale {item}: not NAME=N; write for example --scale dispatch=4")
        if name not in counts:
            raise ConfigurationError(f"--scale {item}: no process {name!r}; there is {', '.join(counts)}")
        counts[name] = int(number)
    return counts


def _split(name: str, command: str, source: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(
            f"{source}: the command of {name!r} cannot be read ({error}); mind the quotes"
        ) from None
    if not words or _SHELL & set(words):
        raise ConfigurationError(f"{source}: the command of {name!r} needs a shell; put it into a script")
    return words
