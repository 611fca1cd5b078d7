"""Reads `config.yaml`, in LiteLLM's shape, and the environment into frozen settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from pipeline.config_access import read_keys, read_variables
from pipeline.config_callbacks import namesakes, read_callbacks, source_file
from pipeline.config_limits import check_aliases, read_limits
from pipeline.config_models import Models, read_models
from pipeline.config_section import Context, Problems, Section
from pipeline.config_storage import read_storage
from pipeline.errors import ConfigurationError
from pipeline.settings import Callback, Settings
from pipeline.yaml_source import Node, read

CONFIG_VARIABLE: Final = "PROMPTMILL_CONFIG"
DATA_DIR_VARIABLE: Final = "PROMPTMILL_DATA_DIR"


def load(path: Path | None, environment: Mapping[str, str], *, data_dir: str | None = None) -> Settings:
    """
    Return the settings in `path`, else in the file PROMPTMILL_CONFIG names.

    Keys stay references to be revealed where they are used; everything else is resolved here. No user code runs.
    Raises ConfigurationError with one line for each error: file:line, the value and the remedy.
    """
    path = _path(path, environment)
    root, notices = read(path, environment)
    problems = Problems()
    problems.notices.extend(notices)
    top, variables = _top(root, environment, problems)
    directory = path.absolute().parent
    for name in namesakes(directory):
        problems.error(root, f"{name} beside the configuration has the name of a package of promptmill; rename it")
    problems.raise_errors()
    models = read_models(top)
    litellm, router = top.section("litellm_settings"), top.section("router_settings")
    general, own = top.section("general_settings"), top.section("promptmill_settings")
    limits = read_limits(litellm, router, general, own)
    settings = Settings(
        source=str(path.absolute()),
        directory=str(directory),
        data_dir=_data_dir(data_dir, environment, own, directory),
        deployments=models.deployments,
        callbacks=read_callbacks(litellm, directory),
        router=limits.router,
        ingress=limits.ingress,
        files=limits.files,
        storage=read_storage(own),
        batches=limits.batches,
        prompts=limits.prompts,
        dispatch=limits.dispatch,
        transport=limits.transport,
    )
    check_aliases(router, settings)
    keys = read_keys(general, own, settings)
    for section in (top, litellm, router, general, own):
        section.close(section.name)
    problems.raise_errors()
    settings = msgspec.structs.replace(settings, keys=keys, environment=variables, notices=tuple(problems.notices))
    return msgspec.structs.replace(settings, digest=_digest(settings, models))


def _path(path: Path | None, environment: Mapping[str, str]) -> Path:
    if path is not None:
        return path
    if named := environment.get(CONFIG_VARIABLE):
        return Path(named)
    raise ConfigurationError(f"no configuration; give one with --config config.yaml, or in {CONFIG_VARIABLE}")


def _top(root: Node, environment: Mapping[str, str], problems: Problems) -> tuple[Section, dict[str, str]]:
    """Return the whole file as a section that knows the variables it sets itself, and those variables."""
    bare = Section(Context(problems=problems, environment=environment), "", root)
    variables = read_variables(bare.section("environment_variables"))
    context = Context(problems=problems, environment={**environment, **variables})
    accepted = Section(context, "", root).section("promptmill_settings").texts("accept_ignored")
    top = Section(msgspec.structs.replace(context, accepted=frozenset(accepted)), "", root)
    for key in ("environment_variables", "include"):  # read above and by `yaml_source`: known keys
        top.raw(key)
    return top, variables


def _data_dir(argument: str | None, environment: Mapping[str, str], own: Section, directory: Path) -> str:
    configured = own.text("data_dir")
    if given := argument or environment.get(DATA_DIR_VARIABLE):
        return str(Path(given).absolute())
    return str(directory / (configured or ".promptmill"))


def _digest(settings: Settings, models: Models) -> str:
    """
    Return what is equal where every name means the same, and every line is judged alike.

    No secret, no path, port or time limit goes into it; nor what keys may use, which jobs and batches carry along.
    """
    meaning = {
        "models": models.fingerprints,
        "aliases": dict(settings.router.aliases),
        "callbacks": [[callback.path, _content(callback, Path(settings.directory))] for callback in settings.callbacks],
        "lines": [
            settings.files.max_line_bytes,
            settings.batches.max_batch_lines,
            settings.batches.max_embedding_inputs,
        ],
    }
    return hashlib.sha256(msgspec.json.encode(meaning, order="sorted")).hexdigest()[:16]


def _content(callback: Callback, directory: Path) -> str:
    file = source_file(directory, callback.path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
