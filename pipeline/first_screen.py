"""What `up` says once the gateway is ready: where it is, what it serves, and a first call to try."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from pipeline import check
from pipeline.job import BATCH
from pipeline.settings import Key, Settings

_SHOWN: Final = 8
"""Facts that changed, in one line."""


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a gateway that is ready."""

    version: str
    url: str
    settings: Settings
    environment: Mapping[str, str]
    redis: str
    """Which server, and where, without credentials."""
    processes: Mapping[str, int]
    managers: tuple[Mapping[str, Any], ...]
    """The facts about each callback, as `workers.prompts.describe` reports them."""
    example: Mapping[str, Any]
    """Further fields of the request to try."""
    unusable: Mapping[str, str] = {}
    """Why providers cannot serve a deployment, by its id, as `workers.deployments` reports it."""
    unserved: tuple[str, ...] = ()
    """What no process here does, though requests need it."""
    concerns: tuple[str, ...] = ()
    """Why the server may lose jobs."""


def show(ready: Ready) -> None:
    """Write the screen to standard error; in colour on a terminal, unless NO_COLOR is set."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        from rich.console import Console  # noqa: PLC0415 - takes 70 ms, which a process without a terminal saves
        from rich.text import Text  # noqa: PLC0415 - as above

        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for label, value in lines(ready):
            console.print(Text.assemble((f"  {label:<11}", "bold cyan"), value))
    else:
        sys.stderr.write("".join(f"  {label:<11}{value}".rstrip() + "\n" for label, value in lines(ready)))
        sys.stderr.flush()


def lines(ready: Ready) -> list[tuple[str, str]]:
    """Return the screen as labels and values."""
    counts = ", ".join(f"{name} {count}" for name, count in ready.processes.items())
    rows = [
        ("", ""),
        ("ready", f"{ready.url}/v1   (promptmill {ready.version})"),
        ("key", _key(ready.settings.keys)),
        ("redis", ready.redis),
        ("processes", counts),
    ]
    rows += _labelled("models", _models(ready))
    rows += _labelled("managers", [_manager(facts) for facts in ready.managers])
    rows += _labelled("warning", [*(_unserved(part) for part in ready.unserved), *ready.concerns])
    rows += _labelled("note", [_place(n.file, n.line) + n.message for n in ready.settings.notices])
    return [*rows, ("", ""), ("try", curl(ready)), ("stop", "Ctrl-C"), ("", "")]


def changes(before: Ready, after: Ready) -> str:
    """Return what the screen of a gateway that was reloaded says now, and what it does not say any more."""
    was, now = _facts(before), _facts(after)
    new, gone = [fact for fact in now if fact not in was], [fact for fact in was if fact not in now]
    told = [f"reloaded: {_some(new)}"] if new or not gone else ["reloaded"]
    return "\n".join([*told, *([f"no more: {_some(gone)}"] if gone else [])])


def request(ready: Ready) -> dict[str, Any]:
    """Return the body of a first request: the first model that can be used, and `example`."""
    models = check.report(ready.settings, ready.environment, ready.unusable).models
    usable = [model for model in models if not all(deployment.disabled for deployment in model.deployments)]
    named = [model.name for model in usable or models if "*" not in model.name]
    return {
        "model": named[0] if named else "MODEL",
        "messages": [{"role": "user", "content": "hi"}],
        **ready.example,
    }


def curl(ready: Ready) -> str:
    """Return a command that asks the gateway something; a key is named, never shown."""
    words = [f"curl {ready.url}/v1/chat/completions", "-H 'Content-Type: application/json'"]
    if ready.settings.keys:
        variable = next((v.variable for key in ready.settings.keys for v in key.values if v.variable), None)
        words.append(f'-H "Authorization: Bearer {f"${variable}" if variable else "YOUR-KEY"}"')
    words.append(f"-d {shlex.quote(json.dumps(request(ready)))}")
    return " \\\n               ".join(words)


def _facts(ready: Ready) -> list[str]:
    label, facts = "", []
    for named, value in lines(ready):
        label = named or label
        if value and label not in ("ready", "try", "stop"):
            facts.append(f"{label} {value}")
    return facts


def _some(facts: list[str]) -> str:
    more = f", and {len(facts) - _SHOWN} more" if len(facts) > _SHOWN else ""
    return ", ".join(facts[:_SHOWN]) + more if facts else "keys, models and managers have the names they had"


def _labelled(label: str, values: Iterable[str]) -> list[tuple[str, str]]:
    return [(label if number == 0 else "", value) for number, value in enumerate(values)]


def _key(keys: tuple[Key, ...]) -> str:
    if not keys:
        return "any (loopback only)"
    sources = [next((f"from ${v.variable}" for v in key.values if v.variable), "configured") for key in keys]
    return ", ".join(f"{key.name} ({source})" for key, source in zip(keys, sources, strict=True))


def _models(ready: Ready) -> list[str]:
    found = []
    for model in check.report(ready.settings, ready.environment, ready.unusable).models:
        reasons = [deployment.disabled for deployment in model.deployments if deployment.disabled]
        targets = ", ".join(dict.fromkeys(deployment.model for deployment in model.deployments))
        off = "disabled" if len(reasons) == len(model.deployments) else "partly disabled"
        found.append(f"{model.name} -> {targets}" + (f"   {off}: {reasons[0]}" if reasons else ""))
    return found or ["none; add some under model_list"]


def _unserved(part: str) -> str:
    if part == "ingress":
        return "no ingress process runs here: nobody answers at this address"
    if part.endswith(f"({BATCH})"):
        return f"no process here works on {part}: unless one does elsewhere, batches wait"
    return f"no process here works on {part}: unless one does elsewhere, requests end in 503 no_worker"


def _manager(facts: Mapping[str, Any]) -> str:
    ignored = facts.get("ignored") or ()
    without = f"   its {', '.join(ignored)} does not run here" if ignored else ""
    return f"{facts['path']} ({facts.get('kind', 'prompt manager')}){without}"


def _place(file: str, line: int) -> str:
    return f"{file}:{line}: " if file and line else f"{file}: " if file else ""
