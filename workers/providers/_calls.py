"""From a deployment and a body to a call that is ready to send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from pipeline import plugins
from pipeline.errors import InvalidRequest, ModelDisabled
from pipeline.settings import Deployment
from workers import providers
from workers.providers._dialect import Endpoint, Fields, LocalAnswer, Provider, UpstreamRequest
from workers.providers._fields import as_fields, encoded
from workers.providers._local import local_answer

_DEFAULT_PREFIX: Final = "openai"
_MOCK_USAGE: Final = (10, 20)
"""What LiteLLM counts for a `mock_response`, whatever its length."""


class Call(msgspec.Struct, frozen=True):
    """One provider call, or the answer that makes it unnecessary."""

    provider: Provider
    endpoint: Endpoint
    request: UpstreamRequest | LocalAnswer


class _Way(msgspec.Struct, frozen=True):
    """What all calls of a deployment share."""

    provider: Provider
    endpoint: Endpoint
    defaults: Fields


class Calls:
    """Prepares calls; what does not depend on the request is worked out once per deployment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._ways: dict[tuple[str, str], _Way | ModelDisabled] = {}
        found: dict[str, Provider] = plugins.load_all(providers, "provider")
        self._providers = {prefix: provider for provider in found.values() for prefix in provider.prefixes}

    def prepare(self, deployment: Deployment, operation: str, fields: Fields) -> Call:
        """Return the call of `deployment` for a body. Raises ModelDisabled or InvalidRequest when there is none."""
        prefix, name = _split(deployment)
        key = (deployment.id, prefix)
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._find(prefix, deployment)
        if isinstance(way, ModelDisabled):
            # A fresh one each time: a raised exception collects the traceback of every request that meets it.
            raise ModelDisabled(way.message, hint=way.hint)
        body = {**way.defaults, **fields, "model": encoded(name)}
        if deployment.mock_response is not None:
            mocked = local_answer(operation, body, deployment.mock_response, _MOCK_USAGE)
            return Call(way.provider, way.endpoint, mocked)
        return Call(way.provider, way.endpoint, way.provider.request(operation, body, way.endpoint))

    def disabled(self, deployment: Deployment) -> str:
        """Return why no request can use `deployment` as things are, and the remedy; empty when one can."""
        try:
            way = self._find(_split(deployment)[0], deployment)
        except InvalidRequest as error:
            return f"{error.message}; correct its `model`"
        if not isinstance(way, ModelDisabled):
            return ""
        return f"{way.message.partition(' is not usable: ')[2]}; {way.hint}"

    def _find(self, prefix: str, deployment: Deployment) -> _Way | ModelDisabled:
        """Return how calls are made. Raises InvalidRequest for a provider that only the request names."""
        defaults = as_fields({name: value for name, value in deployment.defaults.items() if name != "stream"})
        if deployment.mock_response is not None:
            return _Way(self._providers["echo"], Endpoint(prefix=prefix, urls={}, headers={}), defaults)
        if deployment.unset:
            # Without its address a call would go to the provider's own host, with whatever it carries.
            return _unset(deployment)
        provider = self._providers.get(prefix)
        if provider is None:
            hint = f"start `model` with one of {', '.join(sorted(self._providers))}, followed by a slash"
            if deployment.any_provider:  # not remembered: there is no end of what may be asked for
                fact = f"there is no provider {prefix[:64]!r}"
                raise InvalidRequest(fact, hint=hint, param="model", stage="dispatch")
            return ModelDisabled(
                f"model {deployment.model_name!r} is not usable: there is no provider {prefix!r}", hint=hint
            )
        try:
            return _Way(provider, provider.endpoint(prefix, deployment, self._environment), defaults)
        except ModelDisabled as error:
            return error


def _unset(deployment: Deployment) -> ModelDisabled:
    names = ", ".join(deployment.unset)
    missing = f"the variable {names} is" if len(deployment.unset) == 1 else f"the variables {names} are"
    return ModelDisabled(
        f"model {deployment.model_name!r} is not usable: {missing} not set, and calls would go to the wrong place",
        hint=f"set {names} in the environment of the dispatch workers",
    )


def _split(deployment: Deployment) -> tuple[str, str]:
    """Return the provider's prefix and its own name of the model."""
    prefix, slash, name = deployment.model.partition("/")
    if not slash:
        prefix, name = _DEFAULT_PREFIX, prefix
    # A wildcard fills in what the client wrote, so a name is input: it may not read as a path or an address.
    if not name or ".." in name or "://" in name or not name.isprintable():
        raise InvalidRequest(
            "the model's name has parts that no model's name has",
            hint="see /v1/models for the names there are",
            param="model",
            stage="dispatch",
        )
    return prefix, name
