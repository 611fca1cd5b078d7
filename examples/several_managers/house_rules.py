"""What every prompt of this company begins with: a helper module beside the managers that import it."""

from __future__ import annotations

from typing import Any


def with_rules(text: str, messages: list[Any]) -> list[Any]:
    """Return `messages` after a system message that holds the rules and `text`."""
    return [{"role": "system", "content": f"Be brief. {text}"}, *messages]
