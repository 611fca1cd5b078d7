"""Runs the whole gateway on one machine: starts its processes, restarts what crashes, and drains in order."""

from __future__ import annotations

import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from pipeline import callbacks, first_screen, listener, surroundings
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.lockfile import Lock, Running
from pipeline.processes import Child, Output, Spec
from pipeline.procfile import OURS, Procfile
from pipeline.settings import Settings
from pipeline.tether import PARENT_VARIABLE, tied
from pipeline.transport import embedded

SOCKET_VARIABLE: Final = "PROMPTMILL_SOCKET_FD"
"""Number of the listening socket that an ingress process inherits."""

SLOW: Final = 30.0
"""Seconds until a start that is not ready says what is missing."""

_INTERRUPTED: Final = 130


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that was decided before the first process starts."""

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


class Supervisor:
    """One run of the gateway. `run` returns the exit status, or raises ConfigurationError after stopping everything."""

    def __init__(self, plan: Plan, sock: socket.socket, lock: Lock) -> None:
        self._plan = plan
        self._socket = sock
        self._lock = lock
        self._children: list[Child] = []
        self._redis_url = plan.redis_url or ""
        self._server: embedded.EmbeddedServer | None = None
        self._managers: tuple[Mapping[str, Any], ...] = ()
        self._unusable: Mapping[str, str] = {}
        self._ready = False
        self._refused: PipelineError | None = None
        self._status = 0
        self._serving = anyio.CancelScope()
        longest = max((len(name) for name in plan.counts), default=0) + 2
        self._output = Output(max(longest, len(OURS)), sys.stderr.isatty() and "NO_COLOR" not in os.environ)

    async def run(self) -> int:
        """Start everything, serve until SIGTERM or SIGINT, stop everything."""
        await self._live()
        if self._refused is not None:
            raise self._refused
        return self._status

    async def _live(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as lifetimes:
                lifetimes.start_soon(self._heed, signals)
                with self._serving:
                    try:
                        await self._serve(lifetimes)
                    except ConfigurationError as error:  # a task group would let it out as a group
                        self._refuse(error)
                        await anyio.lowlevel.checkpoint()  # where the cancellation takes hold
                await self._drain()
                lifetimes.cancel_scope.cancel()

    async def _serve(self, lifetimes: TaskGroup) -> None:
        plan = self._plan
        self._output.say(f"promptmill {plan.version} is starting")
        for text in (plan.procfile.notice, *(plan.binary.refused if plan.binary else ())):
            if text:
                self._output.say(text)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._start_server, lifetimes)
                tasks.start_soon(self._describe)
                tasks.start_soon(self._judge)
        except* ConfigurationError as group:
            self._refuse(next(e for e in group.exceptions if isinstance(e, ConfigurationError)))
            await anyio.lowlevel.checkpoint()  # where the cancellation takes hold
        for spec in self._specs():
            self._start(spec, lifetimes)
        await self._wait_until_ready()
        self._ready = True
        ready = self._facts()
        first_screen.show(ready)
        if plan.errand is None:
            await anyio.sleep_forever()
        else:
            await plan.errand(ready)

    async def _heed(self, signals: Any) -> None:
        """Drain on the first signal; on the second one, end everything at once."""
        async for number in signals:
            if self._serving.cancel_called:
                self._output.say("killing every process")
                self._status = _INTERRUPTED
                for child in self._children:
                    child.kill()
                continue
            again = "; once more ends it at once" if number == signal.SIGINT else ""
            self._output.say(f"stopping: finishing what is in flight{again}")
            self._serving.cancel()

    def _refuse(self, error: PipelineError) -> None:
        self._refused = self._refused or error
        self._serving.cancel()

    def _crashed(self, child: Child, status: int) -> None:
        """A process that ends with status 2 before the gateway is ready has refused its configuration."""
        if self._ready:
            return
        if child.spec.part == "server":
            assert self._server is not None
            words = embedded.last_words(self._server)
            self._refuse(ConfigurationError(f"the embedded server does not start: {words}"))
        elif status == 2 and child.spec.part in ("ingress", "worker"):
            self._refuse(ConfigurationError(f"{child.spec.name} cannot run as configured; it says above why"))

    def _start(self, spec: Spec, lifetimes: TaskGroup) -> None:
        child = Child(spec, self._output, self._crashed)
        self._children.append(child)
        lifetimes.start_soon(child.run)

    async def _start_server(self, lifetimes: TaskGroup) -> None:
        """Start the embedded server, if there is to be one, and wait until it answers."""
        plan = self._plan
        if plan.binary is None:
            return
        try:
            self._server = server = embedded.prepare(Path(plan.settings.data_dir), plan.binary, plan.settings.transport)
        except OSError as error:
            raise ConfigurationError(
                f"the data directory {plan.settings.data_dir} cannot be written ({error.strerror})",
                hint="name another one with --data-dir or PROMPTMILL_DATA_DIR",
            ) from None
        self._redis_url = server.url
        command = tuple(tied(list(server.command)))
        path = {"PATH": plan.environment.get("PATH", "")}  # it needs no secrets
        self._start(Spec(name="valkey", command=command, environment=path, part="server", grace=20), lifetimes)
        await self._until(lambda: _answering(server), "the embedded server still loads its data")
        self._lock.publish(Running(pid=os.getpid(), redis_url=server.url))

    async def _describe(self) -> None:
        self._managers = await callbacks.describe(self._plan.settings, self._plan.environment)

    async def _judge(self) -> None:
        self._unusable = await callbacks.unusable(self._plan.settings, self._plan.environment)

    def _specs(self) -> list[Spec]:
        """Return every process to start, under its name and number."""
        plan, found = self._plan, []
        common = surroundings.common(plan.settings, plan.environment, self._redis_url)
        if sys.stderr.isatty():
            common.setdefault("PROMPTMILL_LOG_FORMAT", "text")
        for name, count in plan.counts.items():
            part, stages = plan.procfile.part(name), plan.procfile.stages(name)
            environment = surroundings.for_stages(stages, plan.settings, common)
            for number in range(1, count + 1):
                spec = self._spec(name, part, environment)
                found.append(msgspec.structs.replace(spec, name=f"{name}.{number}", stages=stages))
        return found

    def _spec(self, name: str, part: str, environment: Mapping[str, str]) -> Spec:
        words = self._plan.procfile.words(name, environment)
        descriptors: tuple[int, ...] = ()
        if words[0] != OURS:
            return Spec(name=name, command=tuple(tied(words)), environment=environment)
        # -P: a `pipeline.py` in the working directory must not be taken for ours
        command = [sys.executable, "-P", "-m", "pipeline", *words[1:]]
        environment = {**environment, PARENT_VARIABLE: str(os.getpid())}
        grace = self._plan.settings.transport.grace
        if part in ("ingress", "worker") and self._plan.debug:
            command.append("--debug")
        if part == "ingress":
            descriptors = (self._socket.fileno(),)
            environment[SOCKET_VARIABLE] = str(self._socket.fileno())
            grace = self._plan.settings.ingress.drain
        return Spec(
            name=name,
            command=tuple(command),
            environment=environment,
            part=part,
            descriptors=descriptors,
            grace=grace + 5,
        )

    async def _wait_until_ready(self) -> None:
        # looked up by name: redis-py takes long to import, which is free while the processes start
        missing = pkgutil.resolve_name("pipeline.readiness:missing")
        ours = [child for child in self._children if child.spec.part in ("ingress", "worker")]
        at = listener.address_for_clients(self._socket) if any(c.spec.part == "ingress" for c in ours) else None
        left: list[str] = []

        async def ready() -> bool:
            left[:] = await missing({child.spec.name: child.pid for child in ours}, at, self._redis_url)
            return not left

        await self._until(ready, lambda: f"not ready yet: {'; '.join(left)}")

    async def _until(self, ready: Callable[[], Awaitable[bool]], slow: str | Callable[[], str]) -> None:
        """Wait until `ready`; say why not every 30 seconds."""
        said = anyio.current_time()
        while not await ready():
            if anyio.current_time() - said >= SLOW:
                said = anyio.current_time()
                self._output.say(slow if isinstance(slow, str) else slow())
            await anyio.sleep(0.02)

    def _facts(self) -> first_screen.Ready:
        plan = self._plan
        return first_screen.Ready(
            version=plan.version,
            url=listener.url_of(self._socket),
            settings=plan.settings,
            environment={**plan.environment, **plan.settings.environment},
            redis=self._redis(),
            processes=plan.counts,
            managers=self._managers,
            unusable=self._unusable,
            example=plan.example,
        )

    def _redis(self) -> str:
        if self._server is None:
            return embedded.without_credentials(self._redis_url)
        return f"embedded {self._server.binary.path.name} {self._server.binary.version} ({self._server.socket})"

    async def _drain(self) -> None:
        """Stop the ingress first, so that workers serve what is in flight; then them, and the server last."""
        self._socket.close()
        for turn in (0, 1, 2):
            async with anyio.create_task_group() as stops:
                for child in self._children:
                    if {"ingress": 0, "server": 2}.get(child.spec.part, 1) == turn:
                        stops.start_soon(child.stop)
        if self._server is not None:
            embedded.remove_socket(self._server)


async def _answering(server: embedded.EmbeddedServer) -> bool:
    return embedded.answers(server.socket, timeout=0.2)
