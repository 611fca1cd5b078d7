"""What decides a request's way, live or a line of a batch: the prompt it references, and whether its model is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from pipeline.catalog import Catalog, Group, allows
from pipeline.errors import InvalidRequest, ModelNotFound, NotAllowed
from pipeline.job import PromptRef
from pipeline.operations import OPERATIONS
from pipeline.views import View, decode_prompt, kind

DISPATCH: Final = ("dispatch",)
RESOLVE_DISPATCH: Final = ("resolve", "dispatch")

BATCHED: Final = {f"/v1{operation.path}": name for name, operation in OPERATIONS.items()}
"""Paths that lines of a batch may name, and the operations of their jobs."""


class Asked(NamedTuple):
    """A request as far as its way depends on it."""

    view: View
    operation: str
    model: str
    """The name it gives; it may be empty where a prompt manager chooses."""
    allowed: tuple[str, ...]
    """Model names or wildcards its key may use; empty: all."""


def no_header(_: str) -> str:
    """Return what a request without headers has in each of them."""
    return ""


def find_prompt(asked: Asked, catalog: Catalog, header: Callable[[str], str] = no_header) -> PromptRef | None:
    """
    Return the prompt a request references; without one, all that could be wrong with its model has been looked at.

    Raises InvalidRequest, ModelNotFound and NotAllowed.
    """
    if asked.view.stream and not OPERATIONS[asked.operation].streams:
        raise InvalidRequest(f"{asked.operation} are not streamed; leave `stream` out", param="stream")
    group = catalog.group(asked.model) if asked.model else None
    prompt = _reference(asked.view, asked.operation, group, header)
    if prompt is None:
        _check_without_prompt(asked.view, asked.operation, asked.model)
        _check_model(catalog, asked.allowed, asked.model, group)
    return prompt


def _reference(view: View, operation: str, group: Group | None, header: Callable[[str], str]) -> PromptRef | None:
    """Return the reference of the first place that has one: body, `prompt` object, headers, model group."""
    found = decode_prompt(view)
    if found is not None and OPERATIONS[operation].content == "prompt":
        raise InvalidRequest("`prompt` is text here; reference a prompt by `prompt_id`", param="prompt")
    if view.prompt_id is not None:
        if found is not None and found.id is not None and found.id != view.prompt_id:
            raise InvalidRequest("`prompt_id` and `prompt.id` differ; send one of them", param="prompt_id")
        return PromptRef(id=view.prompt_id, version=view.prompt_version, label=view.prompt_label)
    if found is not None and found.id is not None:
        return PromptRef(id=found.id, version=found.version, label=view.prompt_label, source="object")
    if named := header("x-promptmill-prompt-id"):
        version = header("x-promptmill-prompt-version") or None
        label = header("x-promptmill-prompt-label") or None
        return PromptRef(id=named, version=version, label=label, source="header")
    if group is None or group.prompt_id is None:
        return None
    # The operator names the prompt, but a request may still choose among its versions and labels.
    version_ = group.prompt_version if view.prompt_version is None else view.prompt_version
    label_ = group.prompt_label if view.prompt_label is None else view.prompt_label
    return PromptRef(id=group.prompt_id, version=version_, label=label_, source="model")


def _check_without_prompt(view: View, operation: str, name: str) -> None:
    """Nobody will add what is missing."""
    asked = OPERATIONS[operation]
    content = asked.content
    if asked.required and not kind(getattr(view, content)):
        raise InvalidRequest(f"`{content}` is missing; send it, or reference a prompt by `prompt_id`", param=content)
    if not name:
        raise InvalidRequest("`model` is missing; `GET /v1/models` lists what there is", param="model")


def _check_model(catalog: Catalog, allowed: tuple[str, ...], name: str, group: Group | None) -> None:
    """Without a prompt the name is final, so it is judged here; with one, after its prompt manager had its say."""
    if group is None:
        usable = [known for known in catalog.names() if allows(allowed, known)]
        closest = ", ".join(catalog.closest(name, usable)) or "see GET /v1/models"
        raise ModelNotFound(
            f"model {name[:200]!r} is not configured; closest: {closest}",
            hint="use one of these names, or add the model to `model_list`",
            param="model",
        )
    if not (allows(allowed, name) or allows(allowed, group.name)):
        raise NotAllowed(
            f"this key may not use model {name[:200]!r}; `GET /v1/models` lists those it may", param="model"
        )
