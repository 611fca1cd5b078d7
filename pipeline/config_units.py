"""How a value in the configuration is read as a number, a duration, a size or a text."""

from __future__ import annotations

import math
import re
from typing import Final

from pipeline.yaml_source import Node

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def text(node: Node) -> str:
    """Return a text; numbers count as they are written. Raises ValueError that ends a sentence about the value."""
    if node.value is None or isinstance(node.value, bool | dict | list):
        raise ValueError("is not a text; give one, in quotes")
    found = node.value if isinstance(node.value, str) else node.text
    if not found.strip():
        raise ValueError("is empty; give a value or take the line out")
    if any(ord(c) < 32 or ord(c) == 127 for c in found):
        raise ValueError("holds a control character; take it out")
    return found


def prose(node: Node) -> str:
    """Return a text of any content, line breaks included; numbers count as they are written."""
    if node.value is None or isinstance(node.value, bool | dict | list):
        raise ValueError("is not a text; give one, in quotes")
    return node.value if isinstance(node.value, str) else node.text


def number(node: Node, *, at_least: float | None = None, above: float | None = None) -> float:
    """Return a finite number, also from a text such as a variable holds."""
    value = node.value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is not a number; give one")
    _check(float(value), at_least, above)
    return float(value)


def integer(node: Node, *, at_least: int | None = None) -> int:
    """Return a whole number."""
    value = number(node)
    if not value.is_integer():
        raise ValueError("is not a whole number; give one")
    _check(value, at_least, None)
    return int(value)


def share(node: Node) -> float:
    """Return a number from 0 up to, but not including, 1."""
    value = number(node, at_least=0)
    if value >= 1:
        raise ValueError("is too large; give a share below 1")
    return value


def seconds(node: Node, *, at_least: float | None = None, above: float | None = 0) -> float:
    """Return a duration in seconds from a number of seconds or a text such as `30s` or `5m`."""
    value = _quantity(node, {"": 1.0, **_SECONDS})
    if value is None:
        raise ValueError("is not a duration; give seconds as a number, or a text like '30s' or '5m'")
    _check(value, at_least, None if at_least is not None else above)
    return value


def size(node: Node) -> int:
    """Return bytes from a whole number or a text such as `64MB` (decimal) or `1GiB` (binary)."""
    value = _quantity(node, dict(_BYTES))
    if value is None:
        raise ValueError("is not a size; give bytes as a number, or a text like '64MB' or '1GiB'")
    _check(value, 1, None)
    return int(value)


def flag(node: Node) -> bool:
    """Return true or false, also from a text such as a variable holds."""
    if isinstance(node.value, bool):
        return node.value
    words = {"true": True, "false": False, "1": True, "0": False}
    if (found := words.get(str(node.value).lower())) is None:
        raise ValueError("is neither true nor false; give one of the two")
    return found


def _quantity(node: Node, factors: dict[str, float]) -> float | None:
    value = node.value
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value)):
        factor = factors.get(match[2].lower())
        return None if factor is None else round(float(match[1]) * factor, 6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _check(value: float, at_least: float | None, above: float | None) -> None:
    if at_least is not None and value < at_least:
        raise ValueError(f"is too small; give at least {at_least:g}")
    if above is not None and value <= above:
        raise ValueError(f"is too small; give more than {above:g}")
