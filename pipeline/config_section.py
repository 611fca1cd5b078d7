"""One mapping of the configuration, read key by key: what is wrong is collected, what nobody read is told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from pipeline.config_keys import HINTS, IGNORED, RESTRICTING
from pipeline.config_units import prose, text
from pipeline.errors import ConfigurationError
from pipeline.settings import ENVIRONMENT_PREFIX, Notice, Secret
from pipeline.yaml_source import Node

T = TypeVar("T")

_LOOKS_LIKE_A_VARIABLE: Final = re.compile(r"\$\{?[A-Za-z_]\w*\}?|os\.environ.*|%[A-Za-z_]\w*%", re.ASCII)
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_USERINFO: Final = re.compile(r"://[^/@\s]*@")


class Problems:
    """Errors and notices, each with its place. All errors are raised together, in the order of the files' lines."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._errors: dict[str, tuple[str, int]] = {}

    def error(self, node: Node, message: str) -> None:
        """Note something that ends the start."""
        self._errors.setdefault(f"{node.place}: {message}", (node.file, node.line))

    def notice(self, node: Node, message: str) -> None:
        """Note something that does not."""
        self.notices.append(Notice(message=message, file=node.file, line=node.line))

    def raise_errors(self) -> None:
        """Raise one ConfigurationError with a line for each error; return when there is none."""
        if self._errors:
            raise ConfigurationError("\n".join(sorted(self._errors, key=lambda message: self._errors[message])))


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What all sections share while one configuration is read."""

    problems: Problems
    environment: Mapping[str, str]
    accepted: frozenset[str] = frozenset()
    """`promptmill_settings.accept_ignored`."""


class Section:
    """A mapping under `name`. Its getters return None for what is absent, null, unset or (after noting it) wrong."""

    def __init__(self, context: Context, name: str, node: Node) -> None:
        self.context = context
        self.name = name
        self.node = node
        self.unset: list[str] = []
        """Variables that values read so far name, and that are not set."""
        self._read: set[str] = set()
        self._nodes: dict[str, Node] = {}
        if isinstance(node.value, dict):
            self._nodes = node.value
        elif node.value is not None:
            context.problems.error(node, f"{name}: {shown(node)} is not a mapping; give `key: value` lines below it")

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def knows(self, key: str) -> bool:
        """Whether a getter asked for `key`, present or not."""
        return key in self._read

    def path(self, key: str) -> str:
        """Return the key's full name, for messages."""
        return f"{self.name}.{key}" if self.name else key

    def error(self, key: str, message: str) -> None:
        """Note an error at `key`."""
        self.context.problems.error(self._nodes.get(key, self.node), f"{self.path(key)}: {message}")

    def notice(self, key: str, message: str) -> None:
        """Note a warning at `key`."""
        self.context.problems.notice(self._nodes.get(key, self.node), f"{self.path(key)}: {message}")

    def raw(self, key: str) -> Node | None:
        """Return the key's node as it is written, and count it as read."""
        self._read.add(key)
        return self._nodes.get(key)

    def unread(self) -> list[str]:
        """Return the keys no getter asked for."""
        return [key for key in self._nodes if key not in self._read]

    def read(self, key: str, convert: Callable[[Node], T], *, show: bool = True) -> T | None:
        """Return `convert(node)` of the resolved value; its ValueError becomes an error that may `show` the value."""
        node = self.raw(key)
        if node is None or (node := self._resolved(key, node)).value is None:
            return None
        try:
            return convert(node)
        except ValueError as error:
            self.error(key, f"{shown(node) if show else 'the value'} {error}")
            return None

    def text(self, key: str) -> str | None:
        """Return a text."""
        return self.read(key, text)

    def required(self, key: str) -> str | None:
        """Return a text that must be there; None after noting that it is not."""
        node = self.raw(key)
        if node is None or node.value is None:
            self.error(key, "missing; every entry needs it")
            return None
        if (name := variable(node)) and not self.context.environment.get(name):
            self.error(key, f"the variable {name} is not set; set it, or write the value here")
            return None
        return self.text(key)

    def choice(self, key: str, choices: Collection[str]) -> str | None:
        """Return one of `choices`."""
        found = self.text(key)
        if found is not None and found not in choices:
            self.error(key, f"{found!r} is not known; give one of {', '.join(choices)}")
            return None
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; a single text counts as a list of one."""
        node = self.raw(key)
        if node is None or node.value is None:
            return ()
        items = node.value if isinstance(node.value, list) else [node]
        found = []
        for item in items:
            try:
                found.append(text(self._resolved(key, item)))
            except ValueError as error:
                self.context.problems.error(item, f"{self.path(key)}: {shown(item)} {error}")
        return tuple(found)

    def plain(self, key: str) -> Any:
        """Return the value as it is, references in it resolved."""
        node = self.raw(key)
        return None if node is None else self._deep(key, node)

    def mapping(self, key: str) -> dict[str, Any] | None:
        """Return a mapping as it is, references in it resolved."""
        found = self.plain(key)
        if found is not None and not isinstance(found, dict):
            self.error(key, "not a mapping; give `name: value` lines below it")
            return None
        return found

    def headers(self, key: str) -> dict[str, str]:
        """Return names and texts. Messages leave the values out: they may be keys."""
        found: dict[str, str] = {}
        for name, value in (self.mapping(key) or {}).items():
            if value is None:  # a variable that is not set, which is noted already
                continue
            if not _HEADER.fullmatch(name):
                self.error(key, f"{name[:60]!r} is not a header's name; use letters, digits and `-`")
            elif isinstance(value, dict | list | bool) or not (str(value).isprintable() and str(value).isascii()):
                self.error(key, f"the value of {name!r} is not one line of ASCII text; give one, in quotes")
            found[name] = str(value)
        return found

    def section(self, key: str) -> Section:
        """Return the mapping under `key`, empty when it is absent."""
        node = self.raw(key) or Node(None, self.node.file, self.node.line)
        return Section(self.context, self.path(key), node)

    def items(self, key: str) -> list[Section]:
        """Return the mappings of a list."""
        node = self.raw(key)
        if node is None or node.value is None:
            return []
        if not isinstance(node.value, list):
            self.error(key, f"{shown(node)} is not a list; start each entry with `- `")
            return []
        return [Section(self.context, f"{self.path(key)}[{i}]", item) for i, item in enumerate(node.value)]

    def secret(self, key: str) -> Secret | None:
        """Return a value that is not resolved now and shown never."""
        node = self.raw(key)
        return None if node is None or node.value is None else self.as_secret(key, node)

    def as_secret(self, key: str, node: Node) -> Secret | None:
        """Return `node`, which stands at or below `key`, as a secret; None after noting what is wrong with it."""
        wrong = ""
        try:
            found = text(node)
        except ValueError as error:
            found, wrong = "", f"the value {error}"
        if found and not variable(node) and _LOOKS_LIKE_A_VARIABLE.fullmatch(found):
            wrong = f"the value looks like a variable, and would be used as it is; write {ENVIRONMENT_PREFIX}NAME"
        elif found and not (found.isascii() and found.isprintable() and " " not in found):
            wrong = "the value holds a space or a character outside ASCII; take it out"
        if wrong:
            self.context.problems.error(node, f"{self.path(key)}: {wrong}")
            return None
        return Secret(found)

    def close(self, table: str) -> None:
        """
        Tell about every key that was not read, by the lists of `config_keys` under `table`.

        Keys that restrict access or change requests in LiteLLM are errors until they are accepted by name.
        """
        ignored, restricting = IGNORED.get(table, frozenset()), RESTRICTING.get(table, frozenset())
        for key in self.unread():
            if key in restricting:
                self.restricted(key)
            elif key in ignored:
                self.notice(key, f"has no effect here yet{HINTS.get(key, '')}")
            else:
                self.notice(key, unknown(key, (*self._read, *ignored, *restricting)))

    def restricted(self, key: str, name: str = "", node: Node | None = None) -> None:
        """Note a control that LiteLLM would enforce and we do not: an error, or a notice once `name` is accepted."""
        node = node or self._nodes[key]
        if node.value is None or node.value is False or node.value in ([], {}, ""):
            return
        name = name or key
        if {name, self.path(key)} & self.context.accepted:
            self.context.problems.notice(node, f"{self.path(key)}: {name} is not enforced here, as accepted")
            return
        self.context.problems.error(
            node,
            f"{self.path(key)}: {name} restricts access or changes requests in LiteLLM and does not run here; "
            f"take it out, or add {name} to promptmill_settings.accept_ignored to start without it",
        )

    def _resolved(self, key: str, node: Node) -> Node:
        if (name := variable(node)) is None:
            return node
        value = self.context.environment.get(name) or None
        if value is None:
            self.unset.append(name)
            self.context.problems.notice(node, f"{self.path(key)}: the variable {name} is not set; it counts as absent")
        return msgspec.structs.replace(node, value=value, text=value or "")

    def _deep(self, key: str, node: Node) -> Any:
        if isinstance(node.value, dict):
            return {name: self._deep(key, item) for name, item in node.value.items()}
        if isinstance(node.value, list):
            return [self._deep(key, item) for item in node.value]
        return self._resolved(key, node).value


def variable(node: Node) -> str | None:
    """Return the variable a value names as `os.environ/NAME`, if it does."""
    return Secret(node.value).variable if isinstance(node.value, str) else None


def unknown(key: str, known: Iterable[str]) -> str:
    """Return what to say about a key that means nothing here."""
    close = difflib.get_close_matches(key[:200], sorted(set(known)), n=1, cutoff=0.7)
    return f"unknown key; did you mean {close[0]!r}?" if close else "unknown key, ignored"


def shown(node: Node) -> str:
    """Return a value short enough for a message, a password in a URL left out."""
    if isinstance(node.value, dict | list):
        return "a mapping" if isinstance(node.value, dict) else "a list"
    try:
        found = prose(node)
    except ValueError:
        found = node.text or "nothing"
    found = _USERINFO.sub("://***@", found)
    return repr(found if len(found) <= 60 else found[:57] + "...")
