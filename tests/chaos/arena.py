"""Where scenarios run: a whole gateway from the Procfile, its server behind a wire, a provider behind another."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
from chaos.batches import ENDS, LINES, Batch, contents, new_batch, watched
from chaos.load import Load, loading
from chaos.wire import Wire
from chaos.witness import Witness, witness
from fakes.batches import CHAT
from fakes.gateways import Gateway, alive, start_gateway
from fakes.servers import Server, start_server
from fakes.uploads import put
from fakes.waiting import wait_until

from pipeline.errors import TransportError
from pipeline.failpoints import VARIABLE
from pipeline.job import LANES
from pipeline.settings import TransportSettings
from pipeline.stores.batch_records import BatchOrder
from pipeline.stores.batches import BatchStore
from pipeline.stores.local import LocalBlobs
from pipeline.transport import keyspace
from pipeline.transport.client import STAGES
from pipeline.transport.connection import Command, Link
from pipeline.transport.overview import Overview, read_overview

MASTER_KEY = "sk-canary-master-key"
PROVIDER_KEY = "sk-canary-provider-key"
PROMPT = "canary-system-prompt"
CANARIES = (MASTER_KEY, PROVIDER_KEY, PROMPT)
"""Secrets that no log, metric, key name, dead letter or command line may show."""

STORES = ("batches", "files")

_MANAGER = f"""
import time
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        time.sleep(HOOK_TAKES)
        return model, [{{"role": "system", "content": "{PROMPT}"}}, *messages], non_default_params

mine = Mine()
"""

_CONFIG = """
model_list:
  - model_name: gpt-4
    litellm_params: {{model: openai/gpt-4, api_base: "http://{provider}/v1", api_key: {provider_key}}}
{models}
litellm_settings: {{callbacks: [{callbacks}], num_retries: {retries}}}
general_settings: {{master_key: {master_key}}}
promptmill_settings:
  lease: {lease}
  grace: 10
  request_timeout: {request_timeout}
{settings}
"""

_PROCFILE = """
ingress: promptmill ingress
resolve: promptmill worker resolve
dispatch: promptmill worker dispatch
feed: promptmill feed
"""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario wants to run on. Scenarios of the same layout share one arena."""

    ingress: int = 1
    resolve: int = 2
    dispatch: int = 2
    feed: int = 1
    apart: bool = False
    """Whether batches have workers of their own, as in the packaged Procfile: all of a stage but one."""
    lease: float = 1.0
    request_timeout: float = 30.0
    retries: int = 0
    hook_takes: float = 0.01
    """Seconds a prompt manager takes."""
    settings: str = ""
    """Further lines of `promptmill_settings`."""
    server: TransportSettings = TransportSettings()
    """`persistence` and `maxmemory` of the server."""
    manager: str = ""
    """Source of another prompt manager than the usual one."""
    callbacks: str = "mine.mine"
    """The managers of that source."""
    models: str = ""
    """Further entries of `model_list`, a line each; `PROVIDER` stands for host and port of the usual one."""
    site: str = ""
    """Source that every process of the gateway runs first, as `sitecustomize`."""
    files: int = 0
    """Limit of open files of every process; 0: as it is."""

    @property
    def scales(self) -> Mapping[str, int]:
        return {"ingress": self.ingress, "resolve": self.resolve, "dispatch": self.dispatch, "feed": self.feed}


class Held(msgspec.Struct, frozen=True):
    """A pending entry: the process that owns it, seconds since its lease was renewed, and its deliveries so far."""

    pid: int
    idle: float
    number: int


class Arena:
    """A gateway that is up, and the hands on everything around it."""

    def __init__(self, layout: Layout, directory: Path, server: Server, wire: Wire, provider: Wire) -> None:
        self.layout = layout
        self.directory = directory
        self.server = server
        self.wire = wire
        """Between the gateway and Redis; edges: `ingress`, `resolve`, `dispatch`, `feed`."""
        self.provider = provider
        """Between dispatch and the provider; its one edge is ``."""
        self.failpoints = directory / "failpoints"
        self.gateway: Gateway
        self.witness: Witness
        self.load: Load
        self.batches: list[Batch] = []
        """Those of the scenario."""
        self.stored_before: set[Path] = set()
        self.logged = 0
        """Length of the log when the scenario began."""

    @property
    def log(self) -> str:
        """What the gateway wrote since the scenario began."""
        return self.gateway.log[self.logged :]

    def events(self, event: str, **fields: object) -> int:
        """Return how many log lines since the scenario began are of `event` and have these fields."""
        wanted = [f'"event":"{event}"', *(f'"{k}":{msgspec.json.encode(v).decode()}' for k, v in fields.items())]
        return sum(all(part in line for part in wanted) for line in self.log.splitlines())

    def arm(self, name: str, action: str = "exit") -> Path:
        """Arm a failpoint for whichever process reaches it first. Returns the file that is gone once it has fired."""
        file = self.failpoints / name
        file.write_text(action)
        return file

    def pids(self, part: str, lane: str = "") -> list[int]:
        """Return the processes of a part (`ingress`, `resolve`, `dispatch`, `feed`); of one lane where that is said."""
        words = re.compile(rf"pipeline (worker (--lane \w+ )?)?{part}\b")
        return sorted(
            pid
            for pid, command in self.gateway.children().items()
            if words.search(command) and (not lane or f"--lane {lane}" in command)
        )

    def processes(self) -> dict[int, str]:
        """Return all of our processes by id, with their parts."""
        return {pid: part for part in self.layout.scales for pid in self.pids(part)}

    def signal(self, part: str, number: int = signal.SIGKILL, index: int = 0) -> int:
        """Send a signal to one process of a part and return its id."""
        pid = self.pids(part)[index]
        os.kill(pid, number)
        return pid

    async def ended(self, pid: int, timeout: float = 30) -> None:
        """Wait until a process is gone."""
        await wait_until(lambda: not alive(pid), timeout=timeout)

    async def overview(self) -> Overview | None:
        """Return what `status` would show; None while the server is away."""
        try:
            return await read_overview(self.server.url, STAGES)
        except TransportError:
            return None

    async def pending(self, stage: str) -> dict[str, Held]:
        """Return who owns the pending entries of a stage; 0 stands for a process that is not of the gateway."""
        streams = [keyspace.jobs(stage, lane) for lane in LANES]
        replies = await self.redis(*(("XPENDING", name, keyspace.GROUP, "-", "+", 10_000) for name in streams))
        return {
            entry.decode(): Held(pid_of(consumer.decode()), idle / 1000, number)
            for found in replies
            if isinstance(found, list)
            for entry, consumer, idle, number in found
        }

    async def redis(self, *commands: Command) -> list[object]:
        """Send commands to the server, past the wire."""
        link = Link(self.server.url, "test-arena")
        try:
            return list(await link.call(*commands))
        finally:
            await link.close()

    async def complete(self) -> bool:
        """Whether every process of the layout runs and is registered."""
        found = await self.overview()
        if found is None:
            return False
        running = self.processes()
        registered = {process.pid for process in found.processes}
        return len(running) == sum(self.layout.scales.values()) and set(running) <= registered

    async def restore(self, timeout: float = 40) -> None:
        """End every disturbance, and wait until all processes are back and every request under way has ended."""
        for file in self.failpoints.iterdir():
            file.unlink(missing_ok=True)
        self.wire.heal()
        self.provider.heal()
        await wait_until(lambda: not self.load.under_way, timeout=timeout)
        await wait_until(self.complete, timeout=timeout, every=0.1)

    @asynccontextmanager
    async def batch(
        self, lines: int = LINES, wanted: str = "completed", *, seconds: float = 0.0, limit: float = ENDS
    ) -> AsyncIterator[Batch]:
        """Make a batch, which has `seconds` if that is said; on the way out wait for its end, up to the limit."""
        batch = new_batch(self.load.client, lines, wanted)
        self.batches.append(batch)
        made = await (self._short_batch(batch, seconds) if seconds else batch.client.create(contents(batch)))
        async with watched(batch, made, limit):
            yield batch

    async def _short_batch(self, batch: Batch, seconds: float) -> dict[str, Any]:
        """Make a batch as the ingress would if OpenAI had windows of less than a day."""
        file = (await put(batch.client.http, contents(batch))).json()
        state = await self._store.create(BatchOrder("", CHAT, file["id"]), window=seconds)
        return await batch.client.get(state.request.id)

    @property
    def _store(self) -> BatchStore:
        return BatchStore(LocalBlobs(self.directory / ".promptmill" / "batches"))

    async def owners(self, batch: Batch) -> int:
        """Return how many processes have owned a batch; what they logged may have died with them."""
        return (await self._store.get(batch.id, None)).claims

    async def owner(self, batch: Batch) -> int:
        """Return the process that has the lease of a batch; 0 while nobody has it."""
        (holder,) = await self.redis(("GET", keyspace.lease(batch.hex)))
        return pid_of(holder.decode()) if isinstance(holder, bytes) else 0

    def stored(self, kind: str) -> list[Path]:
        """Return everything that is stored of one of STORES."""
        return sorted((self.directory / ".promptmill" / kind).rglob("*"))

    async def serves(self) -> bool:
        """Whether a request is answered right now."""
        return (await self.load.one("plain")).whole

    def begin(self, chance: random.Random) -> None:
        """Forget earlier scenarios."""
        self.witness.forget()
        self.load.outcomes.clear()
        self.batches.clear()
        self.stored_before = {path for kind in STORES for path in self.stored(kind)}
        self.load.chance = chance
        self.logged = len(self.gateway.log)


@asynccontextmanager
async def open_arena(layout: Layout, directory: Path, chance: random.Random) -> AsyncIterator[Arena]:
    """Start everything in `directory`, and end it, whatever the scenarios did."""
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(witness())
        settings = msgspec.structs.replace(layout.server, maxmemory=layout.server.maxmemory or 2**30)
        server = stack.enter_context(start_server(directory / "server", settings))
        wire = stack.enter_context(Wire(server.url.removeprefix("unix://")).running())
        provider = stack.enter_context(Wire(seen.address).running())
        arena = Arena(layout, directory, server, wire, provider)
        arena.witness = seen
        arena.failpoints.mkdir()
        gateway = stack.enter_context(_gateway(arena))
        await anyio.to_thread.run_sync(gateway.wait_until_ready)
        arena.gateway = gateway
        async with loading(gateway.url, MASTER_KEY, chance) as load:
            arena.load = load
            yield arena


@contextlib.contextmanager
def _gateway(arena: Arena) -> Iterator[Gateway]:
    layout, directory = arena.layout, arena.directory
    manager = layout.manager or _MANAGER.replace("HOOK_TAKES", str(layout.hook_takes))
    (directory / "mine.py").write_text(manager)
    models = layout.models.replace("PROVIDER", arena.provider.address)
    config = _CONFIG.format(
        provider=arena.provider.address,
        provider_key=PROVIDER_KEY,
        models="".join(f"  - {line}\n" for line in models.splitlines()),
        callbacks=layout.callbacks,
        master_key=MASTER_KEY,
        retries=layout.retries,
        lease=layout.lease,
        request_timeout=layout.request_timeout,
        settings="\n".join(f"  {line}" for line in layout.settings.splitlines()),
    )
    variables = {"REDIS_URL": f"redis://{arena.wire.address}", VARIABLE: str(arena.failpoints)}
    if layout.site:
        (directory / "site").mkdir()
        (directory / "site" / "sitecustomize.py").write_text(layout.site)
        variables["PYTHONPATH"] = os.pathsep.join([str(directory / "site"), os.environ.get("PYTHONPATH", "")])
    scales = dict(layout.scales)
    if layout.apart:
        scales |= {f"{stage}-batch": scales[stage] - 1 for stage in STAGES} | dict.fromkeys(STAGES, 1)
    else:
        (directory / "Procfile").write_text(_PROCFILE)
    arguments = [f"--scale={part}={count}" for part, count in scales.items()]
    python = _limited(directory, layout.files) if layout.files else sys.executable
    with start_gateway(directory, *arguments, config=config, variables=variables, python=python) as gateway:
        yield gateway


def _limited(directory: Path, files: int) -> str:
    """Return a program that is Python with fewer open files: to take them from ourselves could not be undone."""
    script = directory / "python"
    script.write_text(f'#!/bin/sh\nulimit -n {files}\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def pid_of(consumer: str) -> int:
    """Return the process of a consumer, whose name ends in host, process id and a random word."""
    words = consumer.rsplit("-", 2)
    return int(words[1]) if len(words) == 3 and words[1].isdecimal() else 0


def elapsed(since: float) -> float:
    """Return the seconds since `since` (`time.monotonic()`)."""
    return time.monotonic() - since
