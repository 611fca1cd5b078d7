"""What the processes of a stage tell each other of providers at their limit, by way of their registrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Resting:
    """Set by the stage, and asked whenever this process renews its registration; durations are in seconds."""

    def __init__(self) -> None:
        self.models: Callable[[], dict[str, float]] = dict
        """Returns the models that rest, for people to see."""
        self.deployments: Callable[[], dict[str, float]] = dict
        """Returns the deployments that rest, by id."""
        self.heed: Callable[[Mapping[str, float]], None] = lambda _: None
        """Takes the deployments that rest because live calls of other processes met their limit."""
