"""Watching a batch to its end, through whatever happens to the gateway meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from workers.batch_command.gateway import Batch, Gateway, GatewayAway, read_batch
from workers.batch_command.screens import Screen

PAUSE = 1.0
"""Seconds between two tries to reach a gateway that is away."""

Found = TypeVar("Found")


def watch(gateway: Gateway, batch_id: str, screen: Screen) -> Batch:
    """Show how a batch comes along until it has ended. Raises NotFound."""
    while True:
        seen = patiently(lambda: gateway.batch(batch_id), screen)
        screen.show(seen)
        batch = read_batch(seen)
        if batch.ended:
            return batch
        time.sleep(screen.look_every)


def patiently(ask: Callable[[], Found], screen: Screen) -> Found:
    """Return what a gateway says, once it says something: while it is away, ask it again."""
    told = False
    while True:
        try:
            found = ask()
        except GatewayAway as error:
            if not told:
                screen.say(f"{error.message}; the batch is kept, trying again")
            told = True
            time.sleep(PAUSE)
        else:
            if told:
                screen.say("the gateway is back")
            return found
