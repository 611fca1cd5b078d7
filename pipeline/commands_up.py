"""The commands `up` and `demo`: decide everything, then hand over to the supervisor."""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import click
import msgspec

from pipeline import configuration, first_screen, lockfile, options
from pipeline.errors import ConfigurationError
from pipeline.listener import listen
from pipeline.plan import Plan, Wishes, decide
from pipeline.startup import REQUEST_TIMEOUT_VARIABLE, with_request_timeout
from pipeline.supervise import Supervisor
from pipeline.transport import embedded

DEMO_REQUEST: Final = {"prompt_id": "1234"}
"""What the example prompt manager acts on."""

_NOT_THE_DEMOS: Final = ("REDIS_URL", "LITELLM_MASTER_KEY")


@click.command(short_help="Run the whole gateway on this machine.")
@options.config()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=4000, show_default=True, envvar="PORT", show_envvar=True)
@click.option("--num_workers", type=click.IntRange(1, 1000), envvar="NUM_WORKERS", help="As --scale ingress=N.")
@click.option("--scale", multiple=True, metavar="NAME=N", help="Run N processes of that name; may be repeated.")
@click.option("--procfile", "procfile_path", metavar="FILE", help="Which processes to run; default: see below.")
@options.data_dir()
@click.option("--request_timeout", type=click.FloatRange(0.1), metavar="SECONDS", help="Deadline of a request.")
@click.option("--debug", "--detailed_debug", is_flag=True, help="Log every delivery; never bodies, prompts or keys.")
def up(
    config: str | None,
    host: str,
    port: int,
    num_workers: int | None,
    scale: tuple[str, ...],
    procfile_path: str | None,
    data_dir: str | None,
    request_timeout: float | None,
    debug: bool,
) -> int:
    """
    Run the whole gateway on this machine: every process of the Procfile, and a Redis server if none is named.

    What crashes is started again; Ctrl-C or SIGTERM finishes what is in flight first, a second Ctrl-C does not.
    The processes are those of --procfile, else of the Procfile beside the configuration if all its commands start
    with `promptmill `, else `ingress`, `feed`, and `resolve` and `dispatch` once for live requests and once, named
    `resolve-batch` and `dispatch-batch`, for batches.

    \b
    Examples:
      promptmill up -c config.yaml --scale dispatch=4
      REDIS_URL=rediss://redis.internal promptmill up -c config.yaml --host 0.0.0.0
    """
    environment = dict(os.environ)
    if request_timeout:
        environment[REQUEST_TIMEOUT_VARIABLE] = str(request_timeout)
    wishes = Wishes(host=host, port=port, procfile=procfile_path, scale=scale, ingresses=num_workers, debug=debug)

    def read() -> Plan:
        settings = configuration.load(Path(config) if config else None, environment, data_dir=data_dir)
        settings = with_request_timeout(settings, environment.get(REQUEST_TIMEOUT_VARIABLE))
        return decide(settings, environment, wishes)

    return run(read, wishes)


@click.command(short_help="Run a gateway with an echo model and an example prompt manager.")
@click.option("--port", type=click.IntRange(0, 65535), default=4000, show_default=True, envvar="PORT", show_envvar=True)
@click.option("--data-dir", metavar="DIR", help="Keep the demo's files there; default: a temporary directory.")
@click.option("--once", is_flag=True, help="Send the request it would print, print the answer, and stop.")
def demo(port: int, data_dir: str | None, once: bool) -> int:
    """
    Run a gateway that needs no key, no Redis and no configuration.

    Its model `gpt-4` answers with the messages it received, and its prompt manager is the example of LiteLLM's page
    on custom prompt management: with `prompt_id` 1234 it adds a system message.
    """
    unwanted = (*_NOT_THE_DEMOS, *(name for name in os.environ if name.startswith("PROMPTMILL_")))
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(resources.as_file(resources.files("pipeline").joinpath("demo")))
        directory = data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="promptmill-demo-"))
        wishes = Wishes(host="127.0.0.1", port=port, example=DEMO_REQUEST, errand=_ask if once else None)

        def read() -> Plan:
            return decide(
                configuration.load(files / "config.yaml", environment, data_dir=directory), environment, wishes
            )

        return run(read, wishes)


def run(read: Callable[[], Plan], wishes: Wishes) -> int:
    """
    Run the gateway until it is told to stop, and return the exit status. Raises ConfigurationError.

    `read` makes the plan from the configuration as it is then: now, and whenever the gateway is to reload.
    """
    plan = read()
    if plan.redis_url is None:
        plan = msgspec.structs.replace(plan, binary=embedded.find_binary(plan.environment))
    with lockfile.hold(Path(plan.settings.data_dir)) as lock, listen(wishes.host, wishes.port) as sock:

        async def supervise() -> int:
            return await Supervisor(plan, read, sock, lock).run()

        return anyio.run(supervise)


async def _ask(ready: first_screen.Ready) -> None:
    """Send the request that the first screen shows, and print the answer."""
    body = msgspec.json.encode(first_screen.request(ready))
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{ready.url}/v1/chat/completions", body, headers)  # noqa: S310 - our own address

    def send() -> bytes:
        try:
            # no proxy: the gateway is on this machine
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(request, timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise ConfigurationError(f"the demo's own request was answered with {error.code}: {said}") from None

    click.echo(await anyio.to_thread.run_sync(send))
