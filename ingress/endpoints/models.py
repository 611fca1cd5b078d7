"""The models a key may use."""

from __future__ import annotations

from typing import Any

from ingress.exchange import Exchange, route
from pipeline.catalog import allows
from pipeline.errors import ModelNotFound

CREATED = 1677610602
"""What LiteLLM answers for every model: clients want a number, and nobody knows a better one."""


async def list_models(exchange: Exchange) -> None:
    """Answer with the names this key can ask for, wildcards as they are written."""
    names = [name for name in exchange.edge.catalog.names() if _allowed(exchange, name)]
    await exchange.respond_json({"object": "list", "data": [_model(exchange, name) for name in names]})


async def get_model(exchange: Exchange) -> None:
    """Answer with one model. Raises ModelNotFound; a model of other keys is as absent as one that is nobody's."""
    name: str = exchange.scope["path_params"]["id"]
    if exchange.edge.catalog.group(name) is None or not _allowed(exchange, name):
        raise ModelNotFound(f"model {name[:200]!r} does not exist; `GET /v1/models` lists what there is", param="model")
    await exchange.respond_json(_model(exchange, name))


def _allowed(exchange: Exchange, name: str) -> bool:
    assert exchange.key is not None
    return allows(exchange.key.models, name)


def _model(exchange: Exchange, name: str) -> dict[str, Any]:
    group = exchange.edge.catalog.group(name)
    provider = group.deployments[0].model.partition("/")[0] if group is not None else name.partition("/")[0]
    return {"id": name, "object": "model", "created": CREATED, "owned_by": provider}


routes = [
    route("/models", "models", list_models, "GET"),
    route("/models/{id:path}", "models", get_model, "GET"),
]
