"""Keys that change while a process runs: what it may take over from a new configuration, and what else differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from pipeline.settings import Deployment, Settings

_NAMES: Final = {
    "deployments": "model_list",
    "callbacks": "callbacks",
    "router": "router_settings",
    "ingress": "limits of the ingress",
    "files": "limits of files",
    "batches": "limits of batches",
    "prompts": "limits of prompt managers",
    "dispatch": "limits of dispatch",
    "transport": "redis_url or limits of workers",
    "data_dir": "data_dir",
    "storage": "storage",
}


class Rotation:
    """Tells the stages of a process that keys have changed."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Settings], None]] = []

    def __call__(self, settings: Settings) -> None:
        """Hand out settings that differ from those of the start in their keys alone."""
        for listener in self._listeners:
            listener(settings)

    def also(self, listener: Callable[[Settings], None]) -> None:
        """Tell `listener` too."""
        self._listeners.append(listener)


def rotated(old: Settings, new: Settings) -> Settings:
    """Return `old` with the keys of `new`: clients', providers' by deployment, and the variables they may come from."""
    keys = {_destination(deployment): deployment.api_key for deployment in new.deployments}
    deployments = tuple(
        msgspec.structs.replace(d, api_key=keys.get(_destination(d), d.api_key)) for d in old.deployments
    )
    return msgspec.structs.replace(old, keys=new.keys, environment=new.environment, deployments=deployments)


def differences(old: Settings, new: Settings) -> list[str]:
    """Return what differs, in the words of the configuration; where things stand in the file does not count."""
    return [name for field, name in _NAMES.items() if _meaning(getattr(old, field)) != _meaning(getattr(new, field))]


def _destination(deployment: Deployment) -> tuple[Any, ...]:
    """Return what must be equal for a key to be sent there: one for another host must not reach the old one."""
    return deployment.id, deployment.model, deployment.api_base, deployment.organization


def _meaning(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return tuple(msgspec.structs.replace(entry, line=0) for entry in value)
