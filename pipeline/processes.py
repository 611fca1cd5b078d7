"""One supervised process: started, its output passed on line by line, restarted when it crashes, drained when told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, Process

_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_LONGEST_LINE: Final = 64 * 1024  # bytes; a longer one is passed on in parts
_AT_ONCE: Final = 3
_LONGEST_PAUSE: Final = 30.0
_HEALTHY: Final = 5.0
_AT_WORK: Final = 2.0
"""Seconds after which a process that ends with status 0 was told to end, and is not one that has nothing to do."""


class Backoff:
    """How long to wait before a crashed process is started again; five seconds of health forget earlier crashes."""

    def __init__(self) -> None:
        self._crashes = 0

    def pause(self, ran: float, status: int = 1) -> float:
        """Return the pause in seconds after a process that `ran` for so long: three times none, then up to 30 s."""
        if status == 0 and ran >= _AT_WORK:
            return 0.0
        if ran >= _HEALTHY:
            self._crashes = 0
        self._crashes += 1
        return 0.0 if self._crashes <= _AT_ONCE else min(_LONGEST_PAUSE, 2.0 ** (self._crashes - _AT_ONCE - 1))


class Output:
    """Writes lines to standard error, each behind the name of the process it comes from."""

    def __init__(self, width: int, colour: bool) -> None:
        self._width = width
        self._colour = colour
        self._names: list[str] = []

    def write(self, name: str, *lines: bytes) -> None:
        """Write lines, in the colour of `name`, in one system call."""
        prefix = f"{name:<{self._width}} | ".encode()
        if self._colour:
            if name not in self._names:
                self._names.append(name)
            colour = _COLOURS[self._names.index(name) % len(_COLOURS)]
            prefix = b"\033[%dm%s\033[0m" % (colour, prefix)
        with contextlib.suppress(OSError):  # nobody reads our standard error any more: go on without
            sys.stderr.buffer.write(b"".join(prefix + line + b"\n" for line in lines))
            sys.stderr.buffer.flush()

    def say(self, text: str) -> None:
        """Write one or more lines of the supervisor's own."""
        self.write("promptmill", *text.encode().splitlines())


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, as `name`. `part` orders the stop: `ingress` first, `server` last."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    part: str = ""
    stages: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()
    grace: float = 30.0
    """How long it may take to stop, in seconds, before it is killed."""


class Child:
    """Keeps one process running until `stop`. `crashed` learns of every exit nobody asked for."""

    def __init__(self, spec: Spec, output: Output, crashed: Callable[[Child, int], None]) -> None:
        self.spec = spec
        self._output = output
        self._on_crash = crashed
        self._backoff = Backoff()
        self._process: Process | None = None
        self._stopping = anyio.Event()
        self._ended = anyio.Event()
        self.crashed = anyio.Event()
        """Set once it ended although nobody asked it to."""

    @property
    def pid(self) -> int | None:
        """The process id; None between two runs."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Run the process, again and again, until `stop` or `kill`."""
        try:
            while not self._stopping.is_set():
                started = anyio.current_time()
                status = await self._once()
                if self._stopping.is_set():
                    break
                self.crashed.set()
                self._on_crash(self, status)
                pause = self._backoff.pause(anyio.current_time() - started, status)
                again = f"again in {pause:.0f} s" if pause else "starting it again"
                self._output.say(f"{self.spec.name} {ending(status)}; {again}")
                with anyio.move_on_after(pause):
                    await self._stopping.wait()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Ask the process to stop, once, and wait until it has; kill it after its grace."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._signal(signal.SIGTERM)
        with anyio.move_on_after(self.spec.grace):
            await self._ended.wait()
            return
        self._output.say(f"{self.spec.name} did not stop within {self.spec.grace:.0f} s; killing it")
        self.kill()
        await self._ended.wait()

    def hang_up(self) -> None:
        """Tell the process to take over the keys of the configuration file."""
        self._signal(signal.SIGHUP)

    def kill(self) -> None:
        """End the process, and what it started, at once."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self._process.pid, number)  # it leads a session of its own
                else:
                    os.kill(self._process.pid, number)

    async def _once(self) -> int:
        """Run the process once and return its exit status, negative for a signal."""
        try:
            process = await self._open()
        except OSError as error:
            self._output.say(f"{self.spec.name} cannot be started: {self.spec.command[0]}: {error.strerror}")
            return 127
        async with process, anyio.create_task_group() as tasks:
            self._process = process
            if self._stopping.is_set():  # told to while it was being started
                self._signal(signal.SIGTERM)
            assert process.stdout is not None
            read = anyio.Event()
            tasks.start_soon(self._pass_on, process.stdout, read)
            status = await process.wait()
            self._process = None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started itself, and left behind
            with anyio.move_on_after(0.5):  # a daemon in another session may hold the pipe open for ever
                await read.wait()
            tasks.cancel_scope.cancel()
        return status

    async def _open(self) -> Process:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops things in order.
        # The kernel takes the output's pipe back from a killed supervisor, and a tied process ends with it.
        options: dict[str, Any] = {"start_new_session": True, "pass_fds": self.spec.descriptors}
        return await anyio.open_process(
            list(self.spec.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.spec.environment,
            **options,
        )

    async def _pass_on(self, stream: ByteReceiveStream, done: anyio.Event) -> None:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                self._output.write(self.spec.name, *lines)
            if len(rest) > _LONGEST_LINE:
                self._output.write(self.spec.name, rest)
                rest = b""
        if rest:
            self._output.write(self.spec.name, rest)
        done.set()


def ending(status: int) -> str:
    """Return how a process ended, in words."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
