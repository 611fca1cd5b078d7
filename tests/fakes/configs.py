"""Settings for tests that need no file."""

from __future__ import annotations

from typing import Any

from pipeline.settings import Deployment, Secret, Settings


def deployment(name: str = "gpt-4", model: str = "openai/gpt-4", **fields: Any) -> Deployment:
    """Return a deployment with a key, unless told otherwise."""
    fields.setdefault("api_key", Secret("sk-upstream"))
    fields.setdefault("id", f"{name}-{model}")
    return Deployment(model_name=name, model=model, **fields)


def settings(*deployments: Deployment, **fields: Any) -> Settings:
    """Return settings with the given deployments, or with one `gpt-4`."""
    return Settings(deployments=deployments or (deployment(),), **fields)
