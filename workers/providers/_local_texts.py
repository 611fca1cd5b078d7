"""Answers made here to what is asked of texts: completions, embeddings and moderations, in OpenAI's shapes."""

from __future__ import annotations

import array
import base64
import hashlib
import math
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from pipeline.errors import InvalidRequest
from pipeline.operations import OPERATIONS
from workers.providers._dialect import UNDECODABLE, Fields, LocalAnswer

DIMENSIONS: Final = 8
"""Of a vector whose request asks for no number of them: enough to tell texts apart."""

MOST_BYTES: Final = 2**20
"""Of texts, as JSON: they are read and answered between two looks at everything else."""

MOST_NUMBERS: Final = 2**18
"""In all vectors of an answer."""

CATEGORIES: Final = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


class _Part(msgspec.Struct):
    """A part of a moderation's input: a text, or an image."""

    text: str = ""


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Shape(msgspec.Struct):
    """How a client wants its answer."""

    dimensions: int | None = None
    encoding_format: str | None = None
    stream: bool | None = None
    stream_options: _Options | None = None


_Tokens = list[int]
_decode_texts: Final = msgspec.json.Decoder(str | list[str | int | _Tokens | _Part]).decode
_decode_shape: Final = msgspec.json.Decoder(_Shape).decode
_encode: Final = msgspec.json.Encoder().encode


def text_answer(operation: str, fields: Fields, said: str | None, usage: tuple[int, int] | None) -> LocalAnswer:
    """
    Return an answer to a body; completions say `said`, else what they were given, and are streamed when asked to be.

    Without `usage` a token is a word. Raises InvalidRequest for what is no text, or too much of it.
    """
    model, name = msgspec.json.decode(fields["model"], type=str), OPERATIONS[operation].content
    given = fields.get(name, msgspec.Raw(b"[]"))
    if len(memoryview(given)) > MOST_BYTES:
        raise InvalidRequest(f"`{name}` has more than {MOST_BYTES} bytes; this model is for trying out", param=name)
    try:
        texts, shape = _texts(given), _decode_shape(_encode(fields))
    except UNDECODABLE:
        raise InvalidRequest(f"`{name}` is not a text, or a list of them", hint="send a text", param=name) from None
    words = sum(len(text.split()) for text in texts)
    if operation == "embeddings":
        return LocalAnswer(body=_encode(_embeddings(model, texts, shape, words)), usage=(words, 0))
    if operation == "moderations":
        return LocalAnswer(body=_encode(_moderation(model, texts)))
    answers = texts if said is None else [said] * len(texts)
    usage = usage or (words, words)
    if shape.stream:
        asked = shape.stream_options is not None and shape.stream_options.include_usage
        return LocalAnswer(events=tuple(_events(model, answers, usage if asked else None)), usage=usage)
    return LocalAnswer(body=_encode(_completion(model, answers, usage)), usage=usage)


def _texts(given: msgspec.Raw) -> list[str]:
    """Return the texts of a body; tokens are shown as numbers."""
    found = _decode_texts(given)
    if isinstance(found, str):
        return [found]
    if found and all(isinstance(item, int) for item in found):  # one text, as tokens
        return [_text(found)]
    if any(isinstance(item, _Part) for item in found):  # one input of several parts
        return ["\n".join(map(_text, found))]
    return [_text(item) for item in found]


def _text(item: Any) -> str:
    if isinstance(item, list):
        return " ".join(map(_text, item))
    return item.text if isinstance(item, _Part) else str(item)


def _completion(model: str, texts: Iterable[str], usage: tuple[int, int]) -> dict[str, Any]:
    """Return a completion with one choice for each text."""
    choices = [_choice(index, text, "stop") for index, text in enumerate(texts)]
    return {**_head(model), "choices": choices, "usage": _usage(usage)}


def _events(model: str, texts: Iterable[str], usage: tuple[int, int] | None) -> Iterator[bytes]:
    """Yield an event per line of each text, the usage unless it is None, and `[DONE]`."""
    head = _head(model)
    for index, text in enumerate(texts):
        for piece in text.splitlines(keepends=True):
            yield _event({**head, "choices": [_choice(index, piece, None)]})
        yield _event({**head, "choices": [_choice(index, "", "stop")]})
    if usage is not None:
        yield _event({**head, "choices": [], "usage": _usage(usage)})
    yield b"data: [DONE]\n\n"


def _embeddings(model: str, texts: Sequence[str], shape: _Shape, words: int) -> dict[str, Any]:
    """Return a vector for each text, always the same for the same one. Raises InvalidRequest."""
    count = max(shape.dimensions or DIMENSIONS, 1)
    if count * len(texts) > MOST_NUMBERS:
        message = f"the vectors would have more than {MOST_NUMBERS} numbers in all; this model is for trying out"
        raise InvalidRequest(message, param="dimensions")
    data = []
    for index, text in enumerate(texts):
        vector = _vector(text, count)
        embedding = _packed(vector) if shape.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": words, "total_tokens": words}}


def _moderation(model: str, texts: Iterable[str]) -> dict[str, Any]:
    """Return that nothing is wrong with any of the texts."""
    result = {
        "flagged": False,
        "categories": dict.fromkeys(CATEGORIES, False),
        "category_scores": dict.fromkeys(CATEGORIES, 0.0),
        "category_applied_input_types": {category: ["text"] for category in CATEGORIES},
    }
    return {"id": f"modr-{secrets.token_hex(12)}", "model": model, "results": [result for _ in texts]}


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _usage(usage: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % _encode(chunk)


def _vector(text: str, count: int) -> list[float]:
    """Return `count` numbers drawn from a text's digest, of length 1 as OpenAI's are."""
    digest = hashlib.shake_256(text.encode(errors="replace")).digest(2 * count)
    drawn = [int.from_bytes(digest[at : at + 2]) / 32768 - 1 for at in range(0, 2 * count, 2)]
    length = math.hypot(*drawn) or 1.0
    return [number / length for number in drawn]


def _packed(vector: Iterable[float]) -> str:
    """Return numbers as OpenAI's SDKs ask for them: 32-bit floats, little-endian, in base64."""
    packed = array.array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
