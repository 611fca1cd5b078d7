"""What clients say in short words, in the query of a list or a field of a form."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from ingress.exchange import Exchange
from pipeline.errors import InvalidRequest

MOST_PARAMETERS: Final = 32


def query_of(exchange: Exchange) -> dict[str, str]:
    """Return the parameters of a request's query. Raises InvalidRequest for too many of them."""
    try:
        return dict(parse_qsl(exchange.scope["query_string"].decode("latin-1"), max_num_fields=MOST_PARAMETERS))
    except ValueError:
        raise InvalidRequest(f"the query has more than {MOST_PARAMETERS} parameters; leave some out") from None


def whole_number(name: str, text: str, allowed: range) -> int:
    """Return the number that a text says. Raises InvalidRequest unless it is among those allowed."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) in allowed):
        raise InvalidRequest(f"`{name}` must be a whole number from {allowed[0]} to {allowed[-1]}", param=name)
    return int(text)
