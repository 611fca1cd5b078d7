"""Runs the whole gateway on one machine: starts its processes, restarts what crashes, reloads, and drains in order."""

from __future__ import annotations

import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import anyio
import anyio.lowlevel

from pipeline import callbacks, first_screen, handover, listener
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.fleet import PARTS, Fleet
from pipeline.lockfile import Lock, Running
from pipeline.plan import Given, Plan, renewed, specs, unserved
from pipeline.processes import Child, Output, Spec
from pipeline.procfile import OURS
from pipeline.terminal import Terminal
from pipeline.tether import tied
from pipeline.transport import embedded

SLOW: Final = 30.0
"""Seconds until a start that is not ready says what is missing."""

_INTERRUPTED: Final = 130


class Supervisor:
    """One run of the gateway. `run` returns the exit status, or raises ConfigurationError after stopping everything."""

    def __init__(self, plan: Plan, read: Callable[[], Plan], sock: socket.socket, lock: Lock) -> None:
        self._plan = plan
        self._read = read
        self._socket = sock
        self._lock = lock
        self._redis_url = plan.redis_url or ""
        self._server: embedded.EmbeddedServer | None = None
        self._managers: tuple[Mapping[str, Any], ...] = ()
        self._unusable: Mapping[str, str] = {}
        self._concerns: tuple[str, ...] = ()
        self._ready = False
        self._refused: PipelineError | None = None
        self._status = 0
        self._serving = anyio.CancelScope()
        self._told_to_reload = anyio.Event()
        self._handed: list[IO[bytes]] = []
        longest = max((len(name) for name in plan.counts), default=0) + 2
        self._output = Output(max(longest, len(OURS)), sys.stderr.isatty() and "NO_COLOR" not in os.environ)

    async def run(self) -> int:
        """Start everything, serve until SIGTERM or SIGINT, stop everything."""
        await self._live()
        if self._refused is not None:
            raise self._refused
        return self._status

    async def _live(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as lifetimes:
                fleet = Fleet(self._output, lifetimes, self._crashed)
                lifetimes.start_soon(self._heed, signals, fleet)
                with self._serving:
                    try:
                        await self._serve(fleet)
                    except ConfigurationError as error:  # a task group would let it out as a group
                        self._refuse(error)
                        await anyio.lowlevel.checkpoint()  # where the cancellation takes hold
                self._socket.close()
                await fleet.stop()
                self._close(self._handed[:])
                if self._server is not None:
                    embedded.remove_socket(self._server)
                lifetimes.cancel_scope.cancel()

    async def _serve(self, fleet: Fleet) -> None:
        plan = self._plan
        self._output.say(f"promptmill {plan.version} is starting")
        for text in (plan.procfile.notice, *(plan.binary.refused if plan.binary else ())):
            if text:
                self._output.say(text)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._start_server, fleet)
                tasks.start_soon(self._describe)
                tasks.start_soon(self._judge)
        except* ConfigurationError as group:
            self._refuse(next(e for e in group.exceptions if isinstance(e, ConfigurationError)))
            await anyio.lowlevel.checkpoint()  # where the cancellation takes hold
        for spec in specs(plan, self._given(plan)):
            fleet.start(spec)
        await self._wait_until_ready(*fleet.ours)
        self._ready = True
        if plan.redis_url:  # the embedded server is as its settings want it
            self._concerns = await pkgutil.resolve_name("pipeline.readiness:concerns")(plan.redis_url)
        ready = self._facts()
        embedded_url = self._server.url if self._server else ""
        self._lock.publish(Running(pid=os.getpid(), redis_url=embedded_url, url=ready.url))
        first_screen.show(ready)
        if plan.errand is not None:
            await plan.errand(ready)
            return
        while True:
            await self._told_to_reload.wait()
            self._told_to_reload = anyio.Event()  # told again from here on: once more, after this
            await self._reload(fleet)

    async def _reload(self, fleet: Fleet) -> None:
        """Replace every process by one of the configuration as it is now; one that cannot be used changes nothing."""
        self._output.say("reloading")
        before, old = self._facts(), self._plan
        try:
            plan, kept = renewed(old, self._read())
            managers = await callbacks.describe(plan.settings, plan.environment)
            unusable = await callbacks.unusable(plan.settings, plan.environment)
        except (ConfigurationError, OSError) as error:  # a file that another program is just writing, say
            self._output.say(f"not reloaded, all goes on as it was: {_words(error)}")
            return
        if kept:
            self._output.say(f"only a restart changes {', '.join(kept)}")
        for child in fleet.ours:
            if child.spec.part == "ingress":  # a key that was taken back must not outlive the workers' drain
                child.hang_up()
        try:
            await fleet.roll(specs(plan, self._given(plan)), self._wait_until_ready)
        except ConfigurationError as error:
            self._output.say(f"reloaded in part, the rest goes on as it was: {_words(error)}")
            return
        self._close(self._handed[:-1])
        self._plan, self._managers, self._unusable = plan, managers, unusable
        self._output.say(first_screen.changes(before, self._facts()))

    async def _heed(self, signals: Any, fleet: Fleet) -> None:
        """Reload on SIGHUP. Drain on the first other signal, or when the terminal closes; on the second one, kill."""
        terminal = Terminal()
        async for number in signals:
            if number == signal.SIGHUP and not terminal.closed():
                self._told_to_reload.set()
            elif not self._serving.cancel_called:
                again = "; once more ends it at once" if number == signal.SIGINT else ""
                self._output.say(f"stopping: finishing what is in flight{again}")
                self._serving.cancel()
            elif number != signal.SIGHUP:  # of which a closing terminal sends two
                self._output.say("killing every process")
                self._status = _INTERRUPTED
                fleet.kill()

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
        elif status == 2 and child.spec.part in PARTS:
            self._refuse(ConfigurationError(f"{child.spec.name} cannot run as configured; it says above why"))

    def _given(self, plan: Plan) -> Given:
        """Open what the processes of `plan` inherit; it stays open for those that are started again."""
        self._handed.append(file := handover.give(plan.settings, Path(plan.settings.data_dir)))
        return Given(self._redis_url, self._socket.fileno(), file.fileno())

    def _close(self, files: list[IO[bytes]]) -> None:
        for file in files:
            file.close()
            self._handed.remove(file)

    async def _start_server(self, fleet: Fleet) -> None:
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
        fleet.start(Spec(name="valkey", command=command, environment=path, part="server", grace=20))
        await self._until(lambda: _answering(server), "the embedded server still loads its data")
        self._lock.publish(Running(pid=os.getpid(), redis_url=server.url))

    async def _describe(self) -> None:
        self._managers = await callbacks.describe(self._plan.settings, self._plan.environment)

    async def _judge(self) -> None:
        self._unusable = await callbacks.unusable(self._plan.settings, self._plan.environment)

    async def _wait_until_ready(self, *ours: Child) -> None:
        # looked up by name: redis-py takes long to import, which is free while the processes start
        missing = pkgutil.resolve_name("pipeline.readiness:missing")
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
            concerns=self._concerns,
            example=plan.example,
            unserved=unserved(plan),
        )

    def _redis(self) -> str:
        if self._server is None:
            return embedded.without_credentials(self._redis_url)
        return f"embedded {self._server.binary.path.name} {self._server.binary.version} ({self._server.socket})"


async def _answering(server: embedded.EmbeddedServer) -> bool:
    return embedded.answers(server.socket, timeout=0.2)


def _words(error: ConfigurationError | OSError) -> str:
    if isinstance(error, OSError):
        return str(error)
    return f"{error.message}\n{error.hint}" if error.hint else error.message
