"""YAML files as nodes that know their file and line, with `include` followed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from pipeline.errors import ConfigurationError
from pipeline.settings import ENVIRONMENT_PREFIX, Notice

MOST_NODES: Final = 500_000
"""Values in one file after its aliases are followed; a few lines of nested aliases can stand for billions."""

_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster, where it was built in
_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null"))
_AS_WRITTEN: Final = frozenset({_TAG + "timestamp", _TAG + "value"})
"""An unquoted `2024-02-01` is a provider's API version far more often than a date."""


class Node(msgspec.Struct, frozen=True):
    """A `dict[str, Node]`, a `list[Node]` or a scalar, and its place; the value of a key stands where its key does."""

    value: Any
    file: str
    line: int
    text: str = ""
    """A scalar as it was written: `007` where `value` is 7."""

    @property
    def place(self) -> str:
        """`file:line`, as every message starts."""
        return f"{self.file}:{self.line}"

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read(path: Path, environment: Mapping[str, str]) -> tuple[Node, list[Notice]]:
    """
    Return the mapping in `path` with its `include` files merged in, and what there is to warn about.

    As in LiteLLM an included list extends the list of that name, any other value replaces it.
    Raises ConfigurationError: a missing file, a cycle, YAML that does not parse, a duplicate key.
    """
    notices: list[Notice] = []
    return _included(path, environment, (), notices), notices


def parse(path: Path) -> Node:
    """Return the mapping in one file; an empty file is an empty mapping. Raises ConfigurationError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"{path.name} not found in {path.absolute().parent}; check the path") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; the configuration must be a readable file") from None
    if not data.strip():
        return Node({}, str(path), 1)
    loader = _Loader(data)
    try:
        root = loader.get_single_node()
        if root is None:
            return Node({}, str(path), 1)
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            raise ConfigurationError(
                f"{path}:{line}: not a mapping; a configuration starts with keys like `model_list:`"
            )
        builder = _Builder(loader, str(path))
        built = builder.build(root, 1)
    except yaml.YAMLError as error:
        raise ConfigurationError(_syntax(error, path)) from None
    except RecursionError:
        raise ConfigurationError(f"{path}: nested too deeply to be a configuration; flatten it") from None
    finally:
        loader.dispose()
    if builder.errors:
        raise ConfigurationError("\n".join(builder.errors))
    return built


class _Builder:
    """Turns composed YAML nodes into ours; `errors` collects what is wrong on the way."""

    def __init__(self, loader: Any, file: str) -> None:
        self.errors: list[str] = []
        self._loader = loader
        self._file = file
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: yaml.Node, line: int) -> Node:
        """Return `node` as a value that stands at `line`."""
        self._count += 1
        if self._count > MOST_NODES:
            raise ConfigurationError(
                f"{self._file}:{line}: aliases make this more than {MOST_NODES} values; expand less"
            )
        if id(node) in self._open:
            raise ConfigurationError(
                f"{self._file}:{line}: an alias stands for something that contains it; write it out"
            )
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self._mapping(node), self._file, line)
            if isinstance(node, yaml.SequenceNode):
                return Node([self.build(item, item.start_mark.line + 1) for item in node.value], self._file, line)
            return self._scalar(node, line)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                merged = {**self._merged(value_node, line), **merged}  # of several, the first one wins
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.errors.append(f"{self._file}:{line}: a list or mapping is used as a key; use a plain text")
                continue
            key = str(key_node.value)
            if key in own:
                first = own[key].line
                self.errors.append(f"{self._file}:{line}: {key!r} is there twice, first on line {first}; keep one")
                continue
            own[key] = self.build(value_node, line)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, line: int) -> dict[str, Node]:
        """Return what `<<` brings in: a mapping, or several in a list."""
        bases = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Node] = {}
        for base in bases:
            built = self.build(base, line).value
            if not isinstance(built, dict):
                self.errors.append(f"{self._file}:{line}: `<<` needs a mapping to merge; give an alias of one")
                continue
            found = {**built, **found}
        return found

    def _scalar(self, node: yaml.Node, line: int) -> Node:
        text = str(node.value)
        if node.tag in _AS_WRITTEN:
            return Node(text, self._file, line, text)
        if node.tag not in _SCALARS:
            tag = node.tag.removeprefix(_TAG)
            self.errors.append(f"{self._file}:{line}: the YAML tag {tag!r} is not supported; write a plain value")
            return Node(None, self._file, line, text)
        try:
            return Node(self._loader.construct_object(node), self._file, line, text)
        except ValueError:  # `!!int x`, and numbers beyond what Python converts
            self.errors.append(f"{self._file}:{line}: not a {node.tag.removeprefix(_TAG)}; quote it to make it a text")
            return Node(None, self._file, line, text)


def _syntax(error: yaml.YAMLError, path: Path) -> str:
    """Return a message for YAML that does not parse, without quoting the file: the line may hold a key."""
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return f"{place}: not valid YAML: {problem}; look at indentation, quotes and colons here and just above"


def _included(path: Path, environment: Mapping[str, str], above: tuple[Path, ...], notices: list[Notice]) -> Node:
    here = path.resolve()
    if here in above:
        chain = " -> ".join(p.name for p in (*above[above.index(here) :], here))
        raise ConfigurationError(f"{path}: files include each other: {chain}; take one `include` out")
    root = parse(path)
    merged = dict(root.value)
    include = merged.pop("include", None)
    for node in _include_list(include):
        part = path.parent / _include_path(node, environment)
        if not part.is_file():
            raise ConfigurationError(
                f"{node.place}: included file {part.name} not found in {part.absolute().parent}; "
                "the path is relative to the file that includes it"
            )
        for key, value in _included(part, environment, (*above, here), notices).value.items():
            merged[key] = _merge(key, merged.get(key), value, notices)
    return msgspec.structs.replace(root, value=merged)


def _include_list(include: Node | None) -> list[Node]:
    if include is None or include.value is None:
        return []
    return include.value if isinstance(include.value, list) else [include]


def _include_path(node: Node, environment: Mapping[str, str]) -> str:
    path = node.value
    if isinstance(path, str) and path.startswith(ENVIRONMENT_PREFIX):
        path = environment.get(path.removeprefix(ENVIRONMENT_PREFIX))
    if not isinstance(path, str) or not path:
        raise ConfigurationError(f"{node.place}: include: not a file name; give a list of YAML files")
    return path


def _merge(key: str, ours: Node | None, theirs: Node, notices: list[Notice]) -> Node:
    if ours is None or ours.value is None:
        return theirs
    if isinstance(ours.value, list) and isinstance(theirs.value, list):
        return msgspec.structs.replace(ours, value=ours.value + theirs.value)
    message = f"`{key}` of this included file replaces all of the one at {ours.place}"
    notices.append(Notice(message=message, file=theirs.file, line=theirs.line))
    return theirs
