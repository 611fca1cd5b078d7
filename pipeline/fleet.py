"""The running processes of a gateway: started, replaced one at a time, stopped in order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from pipeline.errors import ConfigurationError
from pipeline.processes import Child, Output, Spec

PARTS: Final = ("ingress", "worker", "feed")
"""What runs our code: they register themselves, and are replaced when the gateway reloads."""

_TURN: Final = {"ingress": 0, "server": 2}


class Fleet:
    """Every process of the gateway; `crashed` learns of each exit nobody asked for."""

    def __init__(self, output: Output, tasks: TaskGroup, crashed: Callable[[Child, int], None]) -> None:
        self._output = output
        self._tasks = tasks
        self._crashed = crashed
        self._children: list[Child] = []

    @property
    def ours(self) -> list[Child]:
        """The processes that run our code."""
        return [child for child in self._children if child.spec.part in PARTS]

    def start(self, spec: Spec) -> Child:
        """Start a process, and keep it running."""
        child = Child(spec, self._output, self._crashed)
        self._children.append(child)
        self._tasks.start_soon(child.run)
        return child

    async def roll(self, specs: Iterable[Spec], ready: Callable[[Child], Awaitable[None]]) -> None:
        """
        Replace our processes by `specs`, one at a time: the new one is `ready` before the old one drains.

        Workers come before the ingress: what is new in a configuration has somebody to serve it before it is offered.
        Raises ConfigurationError when a new process does not get ready; the old one goes on then.
        """
        wanted = {spec.name: spec for spec in specs}
        for spec in sorted(wanted.values(), key=lambda spec: spec.part == "ingress"):
            old = [child for child in self._children if child.spec.name == spec.name]
            if old and spec.part not in PARTS:
                continue
            await self._replace(old, spec, ready)
        gone = [c for c in self._children if c.spec.part != "server" and c.spec.name not in wanted]
        for child in sorted(gone, key=lambda child: child.spec.part != "ingress"):
            await self._end(child)

    async def _replace(self, old: list[Child], spec: Spec, ready: Callable[[Child], Awaitable[None]]) -> None:
        new = self.start(spec)
        async with anyio.create_task_group() as waiting:

            async def get_ready() -> None:
                if spec.part in PARTS:
                    await ready(new)
                waiting.cancel_scope.cancel()

            waiting.start_soon(get_ready)
            await new.crashed.wait()
            waiting.cancel_scope.cancel()
        if new.crashed.is_set():
            await self._end(new)
            raise ConfigurationError(f"{spec.name} does not run with the new configuration; it says above why")
        for child in old:
            await self._end(child)

    async def _end(self, child: Child) -> None:
        await child.stop()
        self._children.remove(child)

    async def stop(self) -> None:
        """Stop the ingress first, so that workers serve what is in flight; then them, and the server last."""
        for turn in (0, 1, 2):
            async with anyio.create_task_group() as stops:
                for child in self._children:
                    if _TURN.get(child.spec.part, 1) == turn:
                        stops.start_soon(child.stop)

    def kill(self) -> None:
        """End everything at once."""
        for child in self._children:
            child.kill()
