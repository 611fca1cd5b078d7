"""What environment each process of the gateway gets: no more secrets than its part needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pipeline.config_access import MASTER_VARIABLES
from pipeline.configuration import CONFIG_VARIABLE, DATA_DIR_VARIABLE
from pipeline.settings import Settings
from pipeline.startup import WITHHELD_VARIABLE

WITHHELD: Final = "withheld"
"""Stands for a client's key where user code runs. Unset, the configuration would mean something else there."""


def common(settings: Settings, environment: Mapping[str, str], redis_url: str) -> dict[str, str]:
    """Return what every process gets: ours, the configuration's `environment_variables`, and the way to Redis."""
    return {
        **environment,
        **settings.environment,
        "REDIS_URL": redis_url,
        CONFIG_VARIABLE: settings.source,
        DATA_DIR_VARIABLE: settings.data_dir,
    }


def for_stages(stages: Iterable[str], settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """
    Return `environment` for a process of these stages.

    One that only resolves runs user code and calls no provider, so the variables that hold the keys of providers,
    clients and storage are kept from it, except those that `prompt_env` lists.
    """
    if tuple(stages) != ("resolve",):
        return dict(environment)
    providers = {d.api_key.variable for d in settings.deployments if d.api_key is not None and d.api_key.variable}
    clients = {value.variable for key in settings.keys for value in key.values if value.variable}
    clients |= set(MASTER_VARIABLES)
    storage = {value.variable for value in settings.storage.options.values() if value.variable}
    kept = set(settings.prompts.environment)
    secret = (providers | clients | storage) - kept
    left = {name: value for name, value in environment.items() if name not in secret}
    left.update({name: WITHHELD for name in clients - kept if environment.get(name)})
    return {**left, WITHHELD_VARIABLE: ",".join(sorted(secret))}
