"""Which model names there are and what stands behind each: what the ingress lists and the workers use."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pipeline.settings import Deployment, Settings


class Group(msgspec.Struct, frozen=True):
    """The deployments behind one model name; for a wildcard, as they are for the name that was asked for."""

    name: str
    deployments: tuple[Deployment, ...]

    @property
    def prompt_id(self) -> str | None:
        """The prompt every request to this group references; a group's deployments agree on it."""
        return self.deployments[0].prompt_id

    @property
    def prompt_version(self) -> str | int | None:
        """The version that goes with `prompt_id`."""
        return self.deployments[0].prompt_version

    @property
    def prompt_label(self) -> str | None:
        """The label that goes with `prompt_id`."""
        return self.deployments[0].prompt_label

    @property
    def prompt_variables(self) -> Mapping[str, Any] | None:
        """The variables that go with `prompt_id`."""
        return self.deployments[0].prompt_variables


class Catalog:
    """All groups of a configuration. Wildcards are matched most specific first, exact names and aliases before them."""

    def __init__(self, settings: Settings) -> None:
        grouped: dict[str, list[Deployment]] = {}
        for deployment in settings.deployments:
            grouped.setdefault(deployment.model_name, []).append(deployment)
        self._groups = {name: Group(name, tuple(entries)) for name, entries in grouped.items()}
        self._aliases = dict(settings.router.aliases)
        self._wildcards = sorted((name for name in grouped if "*" in name), key=lambda name: (-len(name), name))

    def group(self, name: str) -> Group | None:
        """Return the group that clients reach under `name`, or None."""
        name = self._aliases.get(name, name)
        if (found := self._groups.get(name)) is not None and "*" not in name:
            return found
        if "*" in name:  # a pattern is not a name, whoever sends it
            return None
        for pattern in self._wildcards:
            if (rest := _matched(pattern, name)) is not None:
                entries = self._groups[pattern].deployments
                return Group(name, tuple(_filled(entry, rest, name) for entry in entries))
        return None

    def group_serving(self, model: str) -> Group | None:
        """Return the one group that holds a deployment whose provider model is `model`; None for none or several."""
        found = [g for g in self._groups.values() if any(d.model == model for d in g.deployments)]
        return found[0] if len(found) == 1 else None

    def names(self) -> tuple[str, ...]:
        """Return every name clients can list: groups, aliases and wildcards as they are written."""
        return tuple(dict.fromkeys((*self._groups, *self._aliases)))

    def closest(self, name: str, among: Iterable[str] | None = None) -> tuple[str, ...]:
        """Return up to three known names that look like `name`, best first; all of them when there are few."""
        known = tuple(among if among is not None else self.names())
        close = difflib.get_close_matches(name[:200], known, n=3, cutoff=0.4)
        return tuple(close) or (known if len(known) <= 3 else ())


def allows(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a key limited to `patterns` (names or wildcards; none: all) may use the model `name`."""
    return not patterns or any(name == p or ("*" in p and fnmatch.fnmatchcase(name, p)) for p in patterns)


def _matched(pattern: str, name: str) -> str | None:
    """Return what the `*` of `pattern` stands for in `name`, or None."""
    head, _, tail = pattern.partition("*")
    if len(name) > len(head) + len(tail) and name.startswith(head) and name.endswith(tail):
        return name[len(head) : len(name) - len(tail)]
    return None


def _filled(entry: Deployment, rest: str, name: str) -> Deployment:
    """Return `entry` for the name that was asked for; a bare `*` as its model means the name as it is."""
    model = name if entry.model == "*" else entry.model.replace("*", rest, 1)
    if "/" not in model:  # the same default that configuration gives a model without a provider
        model = f"openai/{model}"
    return msgspec.structs.replace(entry, model=model, any_provider="*" in entry.model.partition("/")[0])
