"""What `up` decides before the first process starts, and again when it reloads: which processes, with what."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline import first_screen, handover, plugins, procfile, surroundings
from pipeline.errors import ConfigurationError
from pipeline.exposure import check_exposure
from pipeline.fleet import PARTS
from pipeline.job import LANES, LIVE, serving
from pipeline.listener import SOCKET_VARIABLE
from pipeline.processes import Spec
from pipeline.procfile import OURS, Procfile
from pipeline.settings import Settings
from pipeline.startup import configured_url
from pipeline.tether import PARENT_VARIABLE, tied
from pipeline.transport import embedded

FOR_PEOPLE: Final = ("prompt", "batch")
"""Commands that packages bring and that are no processes of a gateway."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asked for."""

    host: str
    port: int
    procfile: str | None = None
    scale: tuple[str, ...] = ()
    ingresses: int | None = None
    """`--num_workers`."""
    debug: bool = False
    example: Mapping[str, Any] = {}
    errand: Callable[[first_screen.Ready], Awaitable[None]] | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that was decided."""

    settings: Settings
    version: str
    procfile: Procfile
    counts: Mapping[str, int]
    environment: Mapping[str, str]
    redis_url: str | None = None
    """Unset: the embedded server."""
    binary: embedded.Binary | None = None
    """Of the embedded server."""
    debug: bool = False
    example: Mapping[str, Any] = {}
    errand: Callable[[first_screen.Ready], Awaitable[None]] | None = None
    """What to do once ready; then the gateway stops. Unset: serve until told to stop."""


def decide(settings: Settings, environment: Mapping[str, str], wishes: Wishes) -> Plan:
    """Return the plan, but for the embedded server's program. Raises ConfigurationError."""
    check_exposure(settings, wishes.host, {**environment, **settings.environment})
    processes = procfile.choose(wishes.procfile, Path(settings.directory))
    _check_commands(processes)
    return Plan(
        settings=settings,
        version=importlib.metadata.version("promptmill"),
        procfile=processes,
        counts=procfile.scales([*_ingresses(wishes, processes), *wishes.scale], processes),
        environment=environment,
        redis_url=configured_url(settings, environment),
        debug=wishes.debug,
        example=wishes.example,
        errand=wishes.errand,
    )


def renewed(old: Plan, new: Plan) -> tuple[Plan, tuple[str, ...]]:
    """Return `new` with what only a restart can change as it is in `old`, and the names of what that concerns."""
    was, wanted = old.settings.transport, new.settings.transport
    kept = [
        *(name for name in ("data_dir", "storage") if getattr(old.settings, name) != getattr(new.settings, name)),
        *(["redis_url"] if old.redis_url != new.redis_url else []),
        *(name for name in ("maxmemory", "persistence") if getattr(was, name) != getattr(wanted, name)),
    ]
    transport = msgspec.structs.replace(wanted, maxmemory=was.maxmemory, persistence=was.persistence)
    settings = msgspec.structs.replace(
        new.settings, data_dir=old.settings.data_dir, storage=old.settings.storage, transport=transport
    )
    return msgspec.structs.replace(new, settings=settings, redis_url=old.redis_url, binary=old.binary), tuple(kept)


def unserved(plan: Plan) -> tuple[str, ...]:
    """Return what a gateway needs and none of the planned processes does: `ingress`, or a stage in some lane."""
    running = [name for name, count in plan.counts.items() if count]
    does = {plan.procfile.part(name) for name in running}
    for name in running:
        does |= {serving(stage, lane) for stage in plan.procfile.stages(name) for lane in plan.procfile.lanes(name)}
    lanes = LANES if "feed" in does else (LIVE,)
    stages = (*(("resolve",) if plan.settings.callbacks else ()), "dispatch")
    needed = ("ingress", *(serving(stage, lane) for lane in lanes for stage in stages))
    return tuple(part for part in needed if part not in does)


class Given(msgspec.Struct, frozen=True):
    """What processes inherit: the way to Redis, and open files by number."""

    redis_url: str
    socket: int
    """Listens; for the ingress."""
    settings: int
    """Holds the plan's settings."""


def specs(plan: Plan, given: Given) -> list[Spec]:
    """Return every process to run, under its name and number."""
    found = []
    common = surroundings.common(plan.settings, plan.environment, given.redis_url)
    if sys.stderr.isatty():
        common.setdefault("PROMPTMILL_LOG_FORMAT", "text")
    for name, count in plan.counts.items():
        stages = plan.procfile.stages(name)
        environment = surroundings.for_stages(stages, plan.settings, common)
        for number in range(1, count + 1):
            spec = _spec(plan, name, environment, given)
            found.append(msgspec.structs.replace(spec, name=f"{name}.{number}", stages=stages))
    return found


def _spec(plan: Plan, name: str, environment: Mapping[str, str], given: Given) -> Spec:
    words, part = plan.procfile.words(name, environment), plan.procfile.part(name)
    descriptors: tuple[int, ...] = (given.settings,)
    if words[0] != OURS:
        return Spec(name=name, command=tuple(tied(words)), environment=environment)
    # -P: a `pipeline.py` in the working directory must not be taken for ours
    command = [sys.executable, "-P", "-m", "pipeline", *words[1:]]
    environment = {**environment, PARENT_VARIABLE: str(os.getpid()), handover.VARIABLE: str(given.settings)}
    grace = plan.settings.transport.grace
    if part in PARTS and plan.debug:
        command.append("--debug")
    if part == "ingress":
        descriptors = (*descriptors, given.socket)
        environment[SOCKET_VARIABLE] = str(given.socket)
        grace = plan.settings.ingress.drain
    return Spec(
        name=name,
        command=tuple(command),
        environment=environment,
        part=part,
        descriptors=descriptors,
        grace=grace + 5,
    )


def _check_commands(processes: Procfile) -> None:
    """A word that is no command, or one that ends at once, would be started for ever and never noticed."""
    known = [name for name in plugins.commands() if name not in FOR_PEOPLE]
    for name, command in processes.commands.items():
        part = processes.part(name)
        if command.split()[0] == OURS and part not in known:
            raise ConfigurationError(
                f"{processes.source}: process {name!r} runs `{OURS} {part}`, which is no process of a gateway; "
                f"there is {', '.join(known)}"
            )


def _ingresses(wishes: Wishes, processes: Procfile) -> list[str]:
    if wishes.ingresses is None:
        return []
    names = [name for name in processes.commands if processes.part(name) == "ingress"]
    if not names:
        raise ConfigurationError(f"--num_workers: {processes.source} has no ingress; take the option out")
    return [f"{name}={wishes.ingresses}" for name in names]
