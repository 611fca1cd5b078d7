"""Chat completions, under OpenAI's path and the two older ones that carry the model."""

from __future__ import annotations

from ingress.exchange import Exchange, route
from ingress.submit import submit


async def chat(exchange: Exchange) -> None:
    """Answer with a completion."""
    await submit(exchange, "chat.completions")


routes = [
    route("/chat/completions", "chat", chat, "POST"),
    route("/openai/deployments/{model:path}/chat/completions", "chat", chat, "POST"),
    route("/engines/{model:path}/chat/completions", "chat", chat, "POST"),
]
