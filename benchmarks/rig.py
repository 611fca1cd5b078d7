"""What is measured: an upstream that costs nothing, a bare Starlette, and promptmill with all its processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from pipeline.settings import TransportSettings
from pipeline.transport import embedded

PACKAGES: Final = {"nginx": "nginx-light", "wrk": "wrk"}
"""Programs that benchmarks need, and Debian's packages that have them."""

COMPLETION: Final = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "gpt-4",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there, how may I help?"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20},
}

NGINX: Final = """
worker_processes 1;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /v1/ {{ default_type application/json; return 200 '{completion}'; }}
    location /stream/ {{ default_type text/event-stream; return 200 "{events}"; }}
  }}
}}
"""

MANAGER: Final = """
from litellm.integrations.custom_prompt_management import CustomPromptManagement


class Manager(CustomPromptManagement):
    def get_chat_completion_prompt(
        self, model, messages, non_default_params, prompt_id, prompt_variables, dynamic_callback_params
    ):
        return model, [{"role": "system", "content": "Be a good Bot!"}, *messages], non_default_params


manager = Manager()
"""


def program(name: str) -> str:
    """Return where a program is, or end the benchmark with status 2 and say which Debian package has it."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        print(f"This benchmark needs {name}: apt-get install {PACKAGES[name]}", file=sys.stderr)
        raise SystemExit(2)
    return found


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], directory: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / f"{Path(command[0]).name}-{time.monotonic_ns()}.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=directory, env={**os.environ, **environment}
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)
        else:
            return


@contextmanager
def upstream(directory: Path) -> Iterator[str]:
    """Run nginx with fixed answers and yield its URL."""
    nginx = program("nginx")
    port = free_port()
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4"}
    events = "".join(
        "data: " + json.dumps({**chunk, "choices": [{"index": 0, "delta": {"content": f"word {n} "}}]}) + "\n\n"
        for n in range(10)
    )
    text = (events + "data: [DONE]\n\n").replace('"', '\\"').replace("\n", "\\n")
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port, completion=json.dumps(COMPLETION), events=text))
    with process([nginx, "-c", str(config), "-p", str(directory)], directory):
        wait_for(f"http://127.0.0.1:{port}/v1/")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def bare_starlette(directory: Path) -> Iterator[str]:
    """Run uvicorn and Starlette answering at once: the floor of any Python HTTP edge."""
    port = free_port()
    (directory / "bare.py").write_text(
        "import json\n"
        "from starlette.applications import Starlette\n"
        "from starlette.responses import Response\n"
        "from starlette.routing import Route\n"
        f"ANSWER = json.dumps({COMPLETION!r}).encode()\n"
        "async def chat(request):\n"
        "    await request.body()\n"
        "    return Response(ANSWER, media_type='application/json')\n"
        "app = Starlette(routes=[Route('/v1/chat/completions', chat, methods=['POST'])])\n"
    )
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "bare:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "error",
    ]
    with process(command, directory):
        wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def prototype(directory: Path, upstream_url: str) -> Iterator[str]:
    """Run the yardstick: `prototype.py`, one process a stage, on a server like the one promptmill embeds."""
    port = free_port()
    files = embedded.prepare(directory / "prototype", embedded.find_binary({}), TransportSettings())
    environment = {
        "REDIS_URL": files.url,
        "PORT": str(port),
        "UPSTREAM": f"{upstream_url}/v1/chat/completions",
    }
    with ExitStack() as stack:
        stack.callback(embedded.remove_socket, files)
        stack.enter_context(process(list(files.command), directory))
        while not embedded.answers(files.socket):
            time.sleep(0.02)
        for role in ("resolve", "dispatch", "ingress"):
            command = [sys.executable, str(Path(__file__).with_name("prototype.py")), role]
            stack.enter_context(process(command, directory, **environment))
        wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"


class Gateway:
    """A running promptmill: its URL, and the processes it consists of."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid


@contextmanager
def gateway(directory: Path, upstream_url: str, settings: str = "", *arguments: str) -> Iterator[Gateway]:
    """Run `promptmill up` as anybody would, one process a stage, in front of the upstream; `settings` is YAML."""
    port = free_port()
    (directory / "bench_manager.py").write_text(MANAGER)
    (directory / "config.yaml").write_text(
        "model_list:\n"
        + "".join(
            f"  - model_name: {name}\n"
            f"    litellm_params: {{model: openai/gpt-4, api_base: {upstream_url}/{path}, api_key: k}}\n"
            for name, path in (("gpt-4", "v1"), ("streamed", "stream"))
        )
        + "litellm_settings:\n  callbacks: bench_manager.manager\n"
        + settings
    )
    promptmill = Path(sys.executable).with_name("promptmill")
    with ExitStack() as stack:
        command = [str(promptmill), "--config", "config.yaml", "--port", str(port), *arguments]
        started = stack.enter_context(process(command, directory, REDIS_URL="", PROMPTMILL_LOG_FORMAT="json"))
        url = f"http://127.0.0.1:{port}"
        _wait_ready(f"{url}/health/readiness")
        yield Gateway(url, started.pid)


def _wait_ready(url: str, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        if time.monotonic() > limit:
            raise TimeoutError(f"{url} is not ready after {seconds} s; its log is in the working directory")
        time.sleep(0.05)
