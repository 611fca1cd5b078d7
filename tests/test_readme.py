"""What README and docs say is so: configurations load, code compiles, commands, keys, errors and paths exist."""

from __future__ import annotations

import ast
import functools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from fakes.gateways import promptmill

from pipeline import cli, configuration, errors, metrics, procfile
from pipeline.config_units import flag, number, seconds, size
from pipeline.settings import (
    BatchSettings,
    DispatchSettings,
    FileSettings,
    IngressSettings,
    PromptSettings,
    RouterSettings,
    Settings,
    StorageSettings,
    TransportSettings,
)
from pipeline.stores.batch_lines import BatchLine, check_line
from pipeline.stores.lines import Line
from pipeline.transport import keyspace
from pipeline.yaml_source import Node

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
]
MANAGER = ROOT / "pipeline" / "demo" / "custom_prompt.py"

# Files of the reader's own, and modules that are named to be avoided.
YOURS = {"custom_prompt.py", "config.yaml", "a/b.py", "pipeline.py", "ingress.py", "workers.py"}

# Never seen by a client: two bases, the end of a start, an entry that names nobody to answer, and what is found once
# the head of a download is out.
NEVER_SENT = {"upstream_error", "transport_error", "configuration_error", "message_unreadable", "file_damaged"}

OWN: dict[str, tuple[type, str]] = {
    **{name: (IngressSettings, name) for name in IngressSettings.__struct_fields__},
    **{name: (FileSettings, name) for name in FileSettings.__struct_fields__},
    **{name: (BatchSettings, name) for name in BatchSettings.__struct_fields__},
    **{name: (TransportSettings, name) for name in TransportSettings.__struct_fields__ if name != "url"},
    "redis_url": (TransportSettings, "url"),
    "prompt_timeout": (PromptSettings, "timeout"),
    "prompt_slots": (PromptSettings, "slots"),
    "prompt_env": (PromptSettings, "environment"),
    "accept_ignored": (PromptSettings, "accept_ignored"),
    "dispatch_slots": (DispatchSettings, "slots"),
    "max_response_bytes": (DispatchSettings, "max_response_bytes"),
    "connect_timeout": (DispatchSettings, "connect_timeout"),
    "data_dir": (Settings, "data_dir"),
    "storage": (StorageSettings, "url"),
    "storage_options": (StorageSettings, "options"),
    "keys": (Settings, "keys"),
}
ROUTER = {"num_retries": "retries", "allowed_fails": "allowed_fails", "cooldown_time": "cooldown"}
SAMPLES: dict[str, Any] = {
    "keys": {"someone": "sk-of-someone"},
    "redis_url": "redis://localhost",
    "prompt_env": ["NAME"],
    "accept_ignored": ["custom_auth"],
    "dead_letter_bodies": True,
    "accept_eviction": True,
    "batch_reserve": 0.5,
    "persistence": "always",
    "batch_limits": "openai",
    "data_dir": "data",
    "storage": "s3://bucket/prefix",
    "storage_options": {"allow_http": True},
    "prompt_variables": {"name": "Ada"},
    "extra_body": {"user": "me"},
    "batch_params": {"service_tier": "flex"},
    "extra_headers": {"x-name": "value"},
    "api_base": "http://127.0.0.1:1",
    "model_group_alias": {"another": "some"},
    "callbacks": "custom_prompt.prompt_management",
}
TEXTS = [
    "api_key",
    "id",
    "master_key",
    "mock_response",
    "model",
    "model_name",
    "organization",
    "prompt_id",
    "prompt_label",
    "prompt_version",
]


@functools.cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)


def spans(page: str) -> list[str]:
    """Return what stands in backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def table(page: str, *heads: str) -> list[list[str]]:
    """Return the rows of every table that begins with these column heads."""
    head = r"\| " + r" \| ".join(map(re.escape, heads)) + r" \|[^\n]*\n\|[-|]+\|\n"
    bodies = re.findall(head + r"((?:\|[^\n]*\n)+)", text(page))
    assert bodies, f"{page} has no table {heads}"
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for body in bodies for row in body.splitlines()]


def name(cell: str) -> str:
    return cell.strip("| ").strip("`")


def all_blocks(*languages: str) -> list[Any]:
    found = [(page, number, block) for page in PAGES for number, block in enumerate(blocks(page, *languages), start=1)]
    return [pytest.param(block, id=f"{page}-{number}") for page, number, block in found]


def load(directory: Path, config: str, **environment: str) -> Settings:
    (directory / "custom_prompt.py").write_text(MANAGER.read_text())
    (directory / "config.yaml").write_text(config)
    return configuration.load(directory / "config.yaml", environment)


# Blocks


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_a_configuration_loads_and_each_of_its_keys_has_an_effect(block: str, tmp_path: Path) -> None:
    variables = re.findall(r"os\.environ/(\w+)", block)
    settings = load(tmp_path, block, **{variable: f"value-of-{variable}" for variable in variables})
    assert settings.deployments
    assert [notice.message for notice in settings.notices] == []


@pytest.mark.parametrize("block", all_blocks("python"))
def test_a_block_of_python_compiles(block: str) -> None:
    ast.parse(block)


@pytest.mark.parametrize("block", [p for p in all_blocks("python") if "(CustomPromptManagement)" in str(p.values[0])])
def test_a_prompt_manager_runs(block: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(block)
    target = re.findall(r"^(\w+) = \w+\(\)$", block, re.MULTILINE)[-1]
    prompt = "1234" if "1234" in block else "greeting"
    messages = json.dumps([{"role": "user", "content": "hi"}])
    arguments = ["--id", prompt, "--var", "name=Ada", "--messages", messages, "--json"]
    done = promptmill("prompt", "test", f"mine.py:{target}", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trial = json.loads(done.stdout)
    assert trial["changed"]
    assert [message["role"] for message in trial["after"]["messages"]] == ["system", "user"]


def test_the_quick_start_is_the_example() -> None:
    manager, *_ = blocks("README.md", "python")
    example = (ROOT / "examples" / "quick_start" / "custom_prompt.py").read_text()
    assert bare(manager) == bare(example)
    config = (ROOT / "examples" / "quick_start" / "config.yaml").read_text()
    assert plain(blocks("README.md", "yaml")[0]) == plain(config)


def bare(code: str) -> str:
    """Return code without comments, docstrings and formatting."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def plain(config: str) -> str:
    return re.sub(r"\s*#.*", "", config).strip()


def test_what_goes_in_and_out_of_the_quick_start_is_json() -> None:
    before, after = (json.loads(block) for block in blocks("README.md", "json"))
    (asked,) = re.findall(r"-d '(\{.*?\})'$", text("README.md"), re.DOTALL | re.MULTILINE)
    assert json.loads(asked) == before
    added = [{"role": "system", "content": "Be a good Bot!"}, *before["messages"]]
    assert after == {"model": before["model"], "messages": added}


def test_the_lines_of_the_batch_guide_can_run() -> None:
    for block in blocks("docs/batches.md", "json"):
        checked = check_line(Line(1, 0, len(block), block.strip().encode()), "/v1/chat/completions")
        assert isinstance(checked, BatchLine), checked


def test_the_procfile_shown_is_the_packaged_one() -> None:
    (shown,) = blocks("README.md", "Procfile")
    assert procfile.parse(shown, "README.md").commands == procfile.packaged().commands


# Commands


def command_lines(page: str) -> Iterator[str]:
    """Yield every command line that starts `promptmill`, `make` or `python`, in blocks and in the text."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"^(?:\w+=\S+ )+", "", line.strip())
    yield from spans(page)


LINES = sorted({line for page in PAGES for line in command_lines(page)})


@pytest.mark.parametrize(
    "line", [line for line in LINES if re.match(r"promptmill( |$)", line) and line != "promptmill "]
)
def test_a_command_line_is_one_that_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    if words and words[0].startswith("-"):
        words = ["up", *words]
    command: click.Command = cli.promptmill
    context = click.Context(command)
    options = known_options(command)
    while words:
        word = words.pop(0)
        if word in options:
            if not options[word].is_flag:
                words.pop(0)
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            assert found is not None, f"{line}: there is no {word}"
            command, context = found, click.Context(found, parent=context)
            options = known_options(command)
        else:
            assert not word.startswith("-"), f"{line}: {context.command_path} has no option {word}"
            assert any(isinstance(parameter, click.Argument) for parameter in command.params), line


def known_options(command: click.Command) -> dict[str, click.Option]:
    return {name: option for option in command.params if isinstance(option, click.Option) for name in option.opts}


def test_each_sub_command_is_mentioned() -> None:
    context = click.Context(cli.promptmill)
    for command in cli.promptmill.list_commands(context):
        assert any(line.startswith(f"promptmill {command}") for line in LINES), command


def test_options_in_the_text_are_options_of_some_command() -> None:
    known = set(every_option(cli.promptmill))
    for page in PAGES:
        for span in spans(page):
            if span.startswith("--"):
                assert span.split()[0] in known, f"{page}: {span}"


def every_option(command: click.Command) -> Iterator[str]:
    yield from known_options(command)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from every_option(found)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    named = {line.split()[1] for line in LINES if re.match(r"make \w+$", line)}
    assert {"demo", "test"} <= named <= targets


# Configuration


def default_shown(shown: str, default: object) -> bool:
    node = Node(shown, "README.md", 1)
    if default in (None, (), {}):
        return shown == "none"
    if isinstance(default, bool):
        return flag(node) == default
    if isinstance(default, str):
        return shown == default
    return (size(node) if shown.endswith("iB") else seconds(node)) == default


def test_the_table_of_our_keys_is_complete_and_its_defaults_are_the_codes() -> None:
    rows = {name(row[0]): name(row[1]) for row in table("README.md", "key", "default", "when to change it")}
    assert rows.keys() == OWN.keys()
    wrong = {key: shown for key, shown in rows.items() if not default_shown(shown, getattr(OWN[key][0](), OWN[key][1]))}
    assert wrong == {}


def test_the_defaults_of_the_routers_keys_are_the_codes() -> None:
    rows = {name(row[0]): row[1] for row in table("README.md", "key", "meaning here")}
    for key, field in ROUTER.items():
        shown = rows[f"router_settings.{key}"].partition("default ")[2].rstrip(" |")
        assert number(Node(shown, "README.md", 1)) == getattr(RouterSettings(), field), key


def sample(key: str) -> Any:
    found = SAMPLES.get(key)
    return found if found is not None else "some-text" if key in TEXTS else 2


def test_the_loader_knows_each_key_of_our_own(tmp_path: Path) -> None:
    rows = [name(row[0]) for row in table("README.md", "key", "default", "when to change it")]
    values = {key: sample(key) for key in rows}
    settings = load(tmp_path, json.dumps({"model_list": MODELS, "promptmill_settings": values}))
    assert [notice.message for notice in settings.notices] == []


MODELS = [{"model_name": "some", "litellm_params": {"model": "echo/echo"}}]


def shared_keys() -> list[str]:
    return [name(row[0]) for row in table("README.md", "key", "meaning here")]


@pytest.mark.parametrize("key", [key for key in shared_keys() if key not in ("environment_variables", "include")])
def test_the_loader_knows_each_key_shared_with_litellm(key: str, tmp_path: Path) -> None:
    config: Any = {"model_list": json.loads(json.dumps(MODELS))}
    *path, last = key.split(".")
    at = config
    for part in path:
        at = config["model_list"][0] if part == "model_list[]" else at.setdefault(part, {})
    if last not in at:
        at[last] = sample(last)
    if last.startswith("prompt_"):
        at["prompt_id"] = "some"
    settings = load(tmp_path, json.dumps(config))
    assert [notice.message for notice in settings.notices] == []
    if "litellm_params" in path:
        assert last not in settings.deployments[0].defaults, "it would go upstream"


def test_the_providers_named_are_those_there_are() -> None:
    hosts = set(tomllib.loads(text("workers/providers/hosts.toml")))
    (listed,) = re.findall(r"^Providers, by the beginning.*?(?=\n\n)", text("README.md"), re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([a-z_]+)`", listed)) - {"api_base"} == hosts | {"echo"}
    keys = {row["key"] for row in tomllib.loads(text("workers/providers/hosts.toml")).values() if "key" in row}
    named = {span for span in spans("docs/operations.md") if span.endswith("_API_KEY")}
    assert named - {"PROMPTMILL_API_KEY"} == keys


# Errors, metrics, keys in Redis


def every_error(kind: type[errors.PipelineError] = errors.PipelineError) -> Iterator[type[errors.PipelineError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__.startswith(f"{errors.__name__}."):
            yield from every_error(below)


def test_the_table_of_errors_is_the_tree_of_errors() -> None:
    rows = {(name(row[0]), int(row[1])) for row in table("README.md", "code", "status", "meaning", "what to do")}
    there = {(kind.code, kind.status) for kind in every_error()}
    assert rows == {(code, status) for code, status in there if code not in NEVER_SENT}


def test_statuses_in_the_text_have_the_codes_they_name() -> None:
    there = {(str(kind.status), kind.code) for kind in every_error()}
    named = {pair for page in PAGES for pair in re.findall(r"\b([45]\d\d) `([a-z_]+)`", prose(page))}
    assert len(named) > 5
    assert named <= there


def test_metrics_named_are_metrics() -> None:
    known = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    known |= {f"{family.name}{end}" for family in metrics.registry.collect() for end in ("", "_total")}
    known |= {f"promptmill_{name}" for name in metrics.FLEET_GAUGES}
    named = {span for page in PAGES for span in spans(page) if span.startswith("promptmill_") and "." not in span}
    assert named - {"promptmill_settings"} <= known


def test_each_metric_is_explained() -> None:
    rows = {
        name for row in table("docs/operations.md", "metric", "watch it for") for name in re.findall(r"`(\w+)`", row[0])
    }
    ours = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.registry.collect()
        if family.name.startswith("promptmill_")
    }
    assert rows == ours | {f"promptmill_{name}" for name in metrics.FLEET_GAUGES}


def test_the_keys_in_redis_are_those_of_the_keyspace() -> None:
    rows = {name(row[0]) for row in table("docs/architecture.md", "key", "what", "lives")}
    made = [
        keyspace.jobs("<stage>", "<lane>"),
        keyspace.held_bytes("<stage>", "<lane>"),
        keyspace.delayed("<stage>", "<lane>"),
        keyspace.body("<job>", "<writer>"),
        keyspace.replies("<consumer>"),
        keyspace.lines("<batch>"),
        keyspace.lease("<batch>"),
        keyspace.streamed("<job>"),
        keyspace.up("<consumer>"),
        keyspace.admitted("<consumer>"),
        keyspace.CANCEL,
        keyspace.CONSUMERS,
        keyspace.DEAD,
    ]
    assert rows == {key.removeprefix(keyspace.PREFIX) for key in made}


def test_variables_named_are_read_somewhere() -> None:
    code = "\n".join(p.read_text() for top in ("pipeline", "ingress", "workers") for p in (ROOT / top).rglob("*.py"))
    named = {row[0] for row in table("docs/operations.md", "variable", "meaning")}
    for variable in {v for cell in named for v in re.findall(r"`(\w+)`", cell)}:
        assert variable in code or variable in ("SSL_CERT_DIR", "NO_PROXY"), variable


# Paths and names


@pytest.mark.parametrize("page", PAGES)
def test_files_named_are_there(page: str) -> None:
    for span in spans(page):
        if span in YOURS:
            continue
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(\.(py|md|yaml|toml|lua)|/)", span) and span != ".promptmill/":
            found = (ROOT / span).exists() or (ROOT / "pipeline" / "transport" / "scripts" / span).exists()
            assert found, f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


def test_names_in_the_way_of_a_request_are_in_their_files() -> None:
    for where, names, *_ in table("docs/architecture.md", "where", "name", "what it does"):
        code = text(name(where))
        for each in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:async )?(?:def|class) {each}\b", code, re.MULTILINE), f"{where}: {each}"


def test_names_beside_a_file_are_in_that_file() -> None:
    pairs = [
        pair
        for page in PAGES
        for pair in re.findall(r"`([A-Za-z_.]+)` (?:in|of `\w+` in)\s+`([\w/.]+\.py)`", prose(page))
    ]
    assert pairs
    for each, file in pairs:
        if file not in YOURS:
            for part in each.split("."):
                assert re.search(rf"\b{part}\b", text(file)), f"{file}: {each}"


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_place_of_one_machine_or_a_registry(page: str) -> None:
    assert re.findall(r"/(?:work|root|home|tmp|usr)/|pypi\.|npmjs|docker\.io|ghcr\.io", text(page)) == []
