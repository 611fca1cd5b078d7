"""LiteLLM's page on custom prompt management: its files word for word, and a gateway that runs them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fakes.gateways import Gateway
from fakes.upstream import Answer, Received, ScriptedUpstream, chunk, completion, reply, sse

SEED: Final = Path(__file__).parent.parent / "seed"
UPSTREAM_KEY: Final = "sk-of-the-deployment"
CLIENT_KEY: Final = "sk-1234"
TRANSFORMED: Final = [{"role": "system", "content": "Be a good Bot!"}, {"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Running:
    """A gateway and the provider behind it."""

    gateway: Gateway
    upstream: ScriptedUpstream

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What the provider received."""
        return [received.json for received in self.upstream.requests]


def copy_files(directory: Path) -> None:
    """Put the page's `custom_prompt.py` where the configuration will be."""
    shutil.copy(SEED / "custom_prompt.py", directory)


def config(api_base: str) -> str:
    """Return the page's `config.yaml` with an address, and with the other model its clients name."""
    text = (SEED / "config.yaml").read_text()
    key = "      api_key: os.environ/OPENAI_API_KEY\n"
    assert text.count(key) == 1
    entry = f"{key}      api_base: {api_base}\n"
    other = f"  - model_name: gemini-1.5-pro\n    litellm_params:\n      model: openai/gemini-1.5-pro-002\n{entry}"
    return text.replace(key, entry + other)


def answer(received: Received) -> Answer:
    """Answer a chat call or a Response with `hello`, streamed when asked."""
    streamed = received.json.get("stream")
    if received.path.endswith("/responses"):
        return _response_events() if streamed else reply(response())
    return sse(chunk("he"), chunk("llo"), chunk(finish="stop")) if streamed else reply(completion())


def response(**fields: Any) -> dict[str, Any]:
    """Return a Response that says `hello`."""
    text = {"type": "output_text", "text": "hello", "annotations": []}
    message = {"id": "m-1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    whole = {"id": "r-1", "object": "response", "created_at": 1, "model": "m", "status": "completed"}
    return {**whole, "output": [message], "usage": usage, **fields}


def _response_events() -> Answer:
    begun = response(status="in_progress", output=[], usage=None)
    delta = {"type": "response.output_text.delta", "item_id": "m-1", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.created", "sequence_number": 0, "response": begun},
        {**delta, "sequence_number": 1, "delta": "he", "logprobs": []},
        {**delta, "sequence_number": 2, "delta": "llo", "logprobs": []},
        {"type": "response.completed", "sequence_number": 3, "response": response()},
    ]
    return sse(*events, done=False)
