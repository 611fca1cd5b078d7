"""A provider on the loopback: a real HTTP/1.1 server that records every call and answers by script."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.from_thread import start_blocking_portal

HANG = object()
"""A step: say nothing more until the client leaves."""
CUT = object()
"""A step: close the connection here and now."""

Step = bytes | float | anyio.Event | object


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    time: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """Steps of an answer in order: bytes are written, numbers slept, events waited for; see also HANG and CUT."""

    steps: Iterable[Step]


class Gate:
    """Holds answers back until it is opened, from whichever thread."""

    def __init__(self) -> None:
        self._open = False

    def open(self) -> None:
        self._open = True

    def before(self, answer: Answer) -> Answer:
        """Return `answer`, which waits for the gate."""
        return Answer(_Gated(self, answer.steps))

    def waits(self) -> Iterator[float]:
        """Yield pauses until it is open."""
        yield 0.0
        while not self._open:
            yield 0.01


@dataclass(frozen=True)
class _Gated:
    """Steps behind a gate."""

    gate: Gate
    steps: Iterable[Step]

    def __iter__(self) -> Iterator[Step]:
        yield from self.gate.waits()
        yield from self.steps


Script = Answer | Callable[[Received], Answer]


def raw(*steps: Step) -> Answer:
    """Answer with bytes as they are."""
    return Answer(steps)


def reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Answer with a JSON body, or with `bytes` as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    return Answer((_head(status, fields) + content,))


def failure(status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> Answer:
    """Answer with an error in OpenAI's shape."""
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": None, **error}}
    return reply(body, status, headers)


def sse(*events: Any, done: bool = True, then: Step | None = None, between: Step | None = None) -> Answer:
    """
    Answer with a stream: bytes go as they are, other values as `data:` events; each is written on its own.

    `done` adds `[DONE]`; `between` is a step after each event; `then` replaces the clean end (HANG, CUT).
    """
    items = [*events, *([b"data: [DONE]\n\n"] if done else [])]
    steps: list[Step] = [
        _head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
    ]
    for item in items:
        data = item if isinstance(item, bytes) else b"data: " + json.dumps(item).encode() + b"\n\n"
        steps.append(b"%x\r\n%s\r\n" % (len(data), data))
        if between is not None:
            steps.append(between)
    steps.append(b"0\r\n\r\n" if then is None else then)
    return Answer(tuple(steps))


def hang() -> Answer:
    """Take the request and say nothing."""
    return Answer((HANG,))


def drop() -> Answer:
    """Take the request and close the connection."""
    return Answer((CUT,))


def redirect(to: str, status: int = 307) -> Answer:
    """Send the client somewhere else."""
    return reply(b"", status, {"location": to})


def gzip_bomb(size: int) -> Answer:
    """Answer with `size` bytes of blanks, compressed to a thousandth."""
    return reply(gzip.compress(b'{"pad":"' + b" " * size + b'"}', 1), headers={"content-encoding": "gzip"})


def chunk(content: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return one chunk of a streamed chat completion."""
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **fields}


def completion(content: str = "hello", **fields: Any) -> dict[str, Any]:
    """Return a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return {**whole, **fields}


def default(received: Received) -> Answer:
    """Answer a chat call with the number of its messages; streamed when asked."""
    body = received.json
    text = f"{len(body.get('messages', []))} messages"
    if body.get("stream"):
        return sse(chunk(text), chunk(finish="stop"))
    return reply(completion(text))


class ScriptedUpstream:
    """`async with ScriptedUpstream() as upstream`: serves `upstream.url`; calls beyond the script get `default`."""

    def __init__(self, *script: Script) -> None:
        self.requests: list[Received] = []
        self.disconnects: list[float] = []
        """When clients left before their answer was complete (`time.monotonic()`)."""
        self.open_connections = 0
        self.connections = 0
        """How many were ever opened."""
        self.default: Script = default
        self._script: deque[Script] = deque(script)
        self.url = ""

    def script(self, *answers: Script) -> None:
        """Answer the next calls with these, in order."""
        self._script.extend(answers)

    async def __aenter__(self) -> ScriptedUpstream:
        self._stack = contextlib.AsyncExitStack()
        await self._stack.__aenter__()
        listener = await self._stack.enter_async_context(await anyio.create_tcp_listener(local_host="127.0.0.1"))
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(group.cancel_scope.cancel)
        group.start_soon(listener.serve, self._serve)
        self.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _serve(self, stream: SocketStream) -> None:
        self.open_connections += 1
        self.connections += 1
        try:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with stream:
                    await self._converse(stream)
        finally:
            self.open_connections -= 1

    async def _converse(self, stream: SocketStream) -> None:
        buffer = bytearray()
        while True:
            received = await _receive(stream, buffer)
            self.requests.append(received)
            script = self._script.popleft() if self._script else self.default
            answer = script if isinstance(script, Answer) else script(received)
            if all(isinstance(step, bytes) for step in answer.steps):
                await stream.send(b"".join(step for step in answer.steps if isinstance(step, bytes)))
            elif not await self._play(stream, answer):
                return

    async def _play(self, stream: SocketStream, answer: Answer) -> bool:
        """Take the steps while watching for the client to leave; return whether the connection goes on."""
        alive = True
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal alive
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    await stream.receive()
                alive = False
                self.disconnects.append(time.monotonic())
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                alive = await _take(stream, answer.steps) and alive
            except anyio.BrokenResourceError:  # the client was gone before the watcher was told
                alive = False
                self.disconnects.append(time.monotonic())
            group.cancel_scope.cancel()
        return alive


async def _take(stream: SocketStream, steps: Iterable[Step]) -> bool:
    for step in steps:
        if isinstance(step, bytes):
            await stream.send(step)
        elif isinstance(step, int | float):
            await anyio.sleep(step)
        elif isinstance(step, anyio.Event):
            await step.wait()
        elif step is HANG:
            await anyio.sleep_forever()
        else:
            return False
    return True


async def _receive(stream: SocketStream, buffer: bytearray) -> Received:
    while (end := buffer.find(b"\r\n\r\n")) < 0:
        buffer += await stream.receive()
        if not buffer[:1].isalpha():  # a TLS greeting; a server of HTTP hangs up on it
            raise anyio.EndOfStream
    first, *lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    size = end + 4 + int(headers.get("content-length", "0"))
    while len(buffer) < size:
        buffer += await stream.receive()
    body = bytes(buffer[end + 4 : size])
    del buffer[:size]
    method, path, _ = first.split(" ", 2)
    return Received(method, path, headers, body)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.contextmanager
def run_upstream_in_thread(*script: Script) -> Iterator[ScriptedUpstream]:
    """Serve a `ScriptedUpstream` from an event loop in its own thread, for tests that have none or a busy one."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(ScriptedUpstream(*script)) as upstream,
    ):
        yield upstream
