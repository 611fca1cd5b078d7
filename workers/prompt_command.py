"""`promptmill prompt`: try a prompt manager on this machine, with no server and no configuration."""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

import anyio
import click
import msgspec
from rich.console import Console
from rich.text import Text

from pipeline import logs
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.job import Job, PromptRef, encode_json
from workers.prompts.consult import consult
from workers.prompts.isolation import open_isolation
from workers.prompts.loading import load_object, managers, prepare
from workers.prompts.managers import CONTROLS, Manager, inspect_manager
from workers.prompts.request import HookRequest, decode_body, hook_request
from workers.prompts.results import HookResult, merge

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What a manager made of a request; `before` and `after` are bodies."""

    manager: str
    hook: str
    changed: bool
    before: dict[str, Any]
    after: dict[str, Any]


def _target(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[Path, str]:
    """Read `FILE.py:OBJECT`."""
    file, _, attribute = value.rpartition(":")
    if not file or not attribute:
        raise click.BadParameter(f"{value!r} names no object; give FILE.py:OBJECT, like custom_prompt.py:manager")
    path = Path(file).absolute()
    if not path.is_file():
        raise click.BadParameter(f"there is no file {file}; give its path from here")
    return path, attribute


def _texts(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read `KEY=VALUE` pairs."""
    pairs = [value.partition("=") for value in values]
    if wrong := [value for value, (key, found, _) in zip(values, pairs, strict=True) if not key or not found]:
        raise click.BadParameter(f"{wrong[0]!r} is not KEY=VALUE; put an equals sign between the two")
    return {key: text for key, _, text in pairs}


def _values(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Read `KEY=JSON` pairs."""
    return {key: _json(f"the value of {key}", text) for key, text in _texts(_ctx, _parameter, values).items()}


def _messages(_ctx: click.Context, _parameter: click.Parameter, value: str) -> list[Any]:
    """Read a JSON list of messages, or `@file` that holds one."""
    try:
        text = Path(value[1:]).read_text("utf-8") if value.startswith("@") else value
    except OSError as error:
        raise click.BadParameter(f"{value[1:]} cannot be read ({error.strerror}); check the path") from None
    messages = _json("it", text)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise click.BadParameter('it is no list of messages; give for example \'[{"role": "user", "content": "hi"}]\'')
    return messages


def _json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{what} is not JSON ({error}); write text in double quotes") from None


@click.group()
def prompt() -> None:
    """Work with prompt managers."""


@prompt.command()
@click.argument("target", metavar="FILE.py:OBJECT", callback=_target)
@click.option("--id", "prompt_id", required=True, help="The prompt's id.")
@click.option("--var", "variables", multiple=True, metavar="KEY=VALUE", callback=_texts, help="A variable, as text.")
@click.option("--version", help="The prompt's version.")
@click.option("--label", help="The prompt's label.")
@click.option("--messages", default="[]", metavar="JSON|@FILE", callback=_messages, help="The client's messages.")
@click.option("--model", default="", help="The client's model; none when left out.")
@click.option("--param", "params", multiple=True, metavar="KEY=JSON", callback=_values, help="Another body field.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds the manager may take.")
@click.option("--diff", "as_diff", is_flag=True, help="Show what changed as a unified diff.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for other programs.")
@click.pass_context
def test(ctx: click.Context, /, as_diff: bool, as_json: bool, **options: Any) -> None:
    """
    Run a prompt manager on one request and show what it makes of it.

    It runs as in the gateway: in its own thread or loop, with a time limit, its result checked and merged. Nothing
    is sent anywhere, and no configuration is read.

    \b
    Exit status:
      0  the manager answered
      1  the manager failed, or does not serve the prompt
      2  wrong usage, or the file cannot be loaded
    """
    logs.configure(json=False)
    try:
        trial = anyio.run(functools.partial(_try, **options))
    except PipelineError as error:
        _tell_error(error, as_json=as_json)
        ctx.exit(2 if isinstance(error, ConfigurationError) else 1)
    if as_json:
        click.echo(msgspec.json.encode(trial))
    elif as_diff:
        _show_diff(trial)
    else:
        _show(trial)


async def _try(target: tuple[Path, str], timeout: float, **options: Any) -> Trial:
    """Load the manager, ask it, and return what it did."""
    file, attribute = target
    manager = _load(file, attribute)
    request = _request(**options)
    result = await _ask(manager, request, timeout)
    if isinstance(result, PipelineError):
        raise result
    before = msgspec.json.decode(encode_json(request.body))
    return Trial(
        manager=manager.path,
        hook=manager.hook_name,
        changed=result.changed,
        before=before,
        after=_after(request, result),
    )


async def _ask(manager: Manager, request: HookRequest, timeout: float) -> HookResult | PipelineError:
    """Return the result, or the error: raised in here it would come out wrapped in an exception group."""
    async with open_isolation(1, timeout, _ignore) as isolation:
        try:
            return await consult(managers([manager]), isolation, request)
        except PipelineError as error:
            return error


def _load(file: Path, attribute: str) -> Manager:
    prepare(str(file.parent))
    target = load_object(file, file.stem, attribute)
    return inspect_manager(target, f"{file.stem}.{attribute}", CONTROLS)  # what else is on it does not matter here


def _request(
    *,
    prompt_id: str,
    variables: dict[str, str],
    version: str | None,
    label: str | None,
    messages: list[Any],
    model: str,
    params: dict[str, Any],
) -> HookRequest:
    """Return the request as the gateway would hand it to the hook."""
    body: dict[str, Any] = {**({"model": model} if model else {}), "messages": messages, **params}
    body["prompt_id"] = prompt_id
    if variables:
        body["prompt_variables"] = variables
    job = Job(id="prompt-test", operation="chat.completions", stages_left=("resolve",), deadline=0, model=model)
    ref = PromptRef(id=prompt_id, version=version, label=label)
    return hook_request(job, ref, decode_body(encode_json(body)), None)


def _after(request: HookRequest, result: HookResult) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(encode_json(merge(request.body, result)))
    return {**({"model": result.model} if result.model else {}), **{k: v for k, v in body.items() if k != "model"}}


def _ignore(reason: str) -> None:
    """Stand for the restart of a worker whose slots are stuck: here the command ends anyway."""


def _show(trial: Trial) -> None:
    console = Console()
    console.print(f"[bold]{trial.manager}[/] ({trial.hook}): {'changed' if trial.changed else 'unchanged'}")
    for title, body in (("before", trial.before), ("after", trial.after)):
        console.rule(title, align="left")
        console.print_json(data=body)


def _show_diff(trial: Trial) -> None:
    before, after = (
        json.dumps(body, indent=2, ensure_ascii=False).splitlines() for body in (trial.before, trial.after)
    )
    console = Console(soft_wrap=True)
    for line in difflib.unified_diff(before, after, "before", "after", lineterm=""):
        console.print(Text(line, style=_STYLES.get(line[:1], "")))


def _tell_error(error: PipelineError, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"error": error.fields("resolve")}))
    else:
        click.echo(f"Error: {error.message}" + (f"\n{error.hint}" if error.hint else ""), err=True)
