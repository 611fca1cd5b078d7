"""Whether a server is fit to hold jobs: it must not evict them, and should outlive its own end."""

from __future__ import annotations

from typing import Final

from pipeline.errors import ConfigurationError
from pipeline.transport.overview import NO_LOG, ServerOverview

KEEPS: Final = "noeviction"
"""The one `maxmemory-policy` that evicts nothing; one that a managed server does not tell is believed to be it."""


def eviction(server: ServerOverview) -> ConfigurationError | None:
    """Return the error for a server that would evict jobs, answers or bodies when it is full."""
    if server.eviction in ("", KEEPS):
        return None
    return ConfigurationError(
        f"Redis ({server.name}) evicts keys when it is full ({server.eviction}): jobs and answers would vanish",
        hint=f"set its maxmemory-policy to {KEEPS}, or `accept_eviction: true` under promptmill_settings",
    )


def concerns(server: ServerOverview) -> list[str]:
    """Return what a server's owner should know, in words for people."""
    found = []
    if server.eviction not in ("", KEEPS):
        found.append(f"redis evicts keys when it is full ({server.eviction}): jobs may vanish; set {KEEPS}")
    if server.persistence == NO_LOG:
        found.append("redis keeps no append-only file: if it dies, accepted requests are lost; set appendonly yes")
    return found
