"""What `promptmill check` reports about a configuration, as data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from pipeline.settings import Deployment, Notice, Secret, Settings

_LIMITS: Final = ("ingress", "files", "batches", "router", "prompts", "dispatch", "transport")
_NO_LIMITS: Final = frozenset(["aliases", "environment", "accept_ignored"])


class DeploymentReport(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `model_list`."""

    id: str
    model: str
    line: int
    disabled: str = ""
    """Why it cannot be used as things are; empty when it can."""
    prompt_id: str | None = None


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """A model name and what stands behind it."""

    name: str
    deployments: tuple[DeploymentReport, ...]


class CallbackReport(msgspec.Struct, frozen=True, kw_only=True):
    """A callback path and where it stands."""

    path: str
    file: str
    line: int


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was understood. It holds no secret, and encodes as JSON."""

    source: str
    directory: str
    data_dir: str
    storage: str | None
    """An object store; None: files are in the data directory."""
    digest: str
    models: tuple[ModelReport, ...]
    aliases: Mapping[str, str]
    callbacks: tuple[CallbackReport, ...]
    keys: tuple[str, ...]
    """Their names only."""
    limits: Mapping[str, Any]
    """Those that differ from their defaults, as `section.field`."""
    notices: tuple[Notice, ...]


def report(
    settings: Settings, environment: Mapping[str, str], unusable: Mapping[str, str] = MappingProxyType({})
) -> CheckReport:
    """Return what `settings` mean with `environment`; `unusable` is why providers cannot serve a deployment, by id."""
    environment = {**environment, **settings.environment}
    return CheckReport(
        source=settings.source,
        directory=settings.directory,
        data_dir=settings.data_dir,
        storage=settings.storage.url,
        digest=settings.digest,
        models=_models(settings, environment, unusable),
        aliases=dict(settings.router.aliases),
        callbacks=tuple(CallbackReport(path=c.path, file=c.file, line=c.line) for c in settings.callbacks),
        keys=tuple(key.name for key in settings.keys),
        limits=_limits(settings),
        notices=settings.notices,
    )


def disabled(deployment: Deployment, environment: Mapping[str, str]) -> str:
    """Return why `deployment` cannot be used, or an empty text; a provider's own variable is for dispatch to know."""
    names = list(deployment.unset)
    key = deployment.api_key
    if key is not None and key.variable and not key.reveal(environment):
        names.append(key.variable)
    return f"the variable {' and '.join(names)} is not set; set it where promptmill starts" if names else ""


def _models(settings: Settings, environment: Mapping[str, str], unusable: Mapping[str, str]) -> tuple[ModelReport, ...]:
    found: dict[str, list[DeploymentReport]] = {}
    for deployment in settings.deployments:
        found.setdefault(deployment.model_name, []).append(
            DeploymentReport(
                id=deployment.id,
                model=deployment.model,
                line=deployment.line,
                disabled=disabled(deployment, environment) or unusable.get(deployment.id, ""),
                prompt_id=deployment.prompt_id,
            )
        )
    return tuple(ModelReport(name=name, deployments=tuple(entries)) for name, entries in found.items())


def _limits(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in _LIMITS:
        ours = getattr(settings, section)
        default = type(ours)()
        for field in ours.__struct_fields__:
            value = getattr(ours, field)
            if field not in _NO_LIMITS and value != getattr(default, field):
                found[f"{section}.{field}"] = str(value) if isinstance(value, Secret) else value
    return found
