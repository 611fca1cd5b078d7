"""What a provider's 403 is about: a line, or the key of its deployment."""

from __future__ import annotations

from workers.batches.lines import OpenLine


class Forbidden:
    """Tells by the other lines of a batch. A key that is not good any more serves none that is fed later."""

    def __init__(self) -> None:
        self._answered: dict[str, float] = {}
        """When the youngest job was fed that a deployment answered, by the deployment's id."""

    def answered(self, line: OpenLine, deployment: str) -> None:
        """The job of a line was answered."""
        self._answered[deployment] = max(line.fed_at, self._answered.get(deployment, 0.0))

    def is_about(self, line: OpenLine, deployment: str) -> bool:
        """Whether a line is to blame that was refused: again, and others were served that were fed no earlier."""
        if not line.forbidden:
            line.forbidden = line.fed_at
            return False
        return self._answered.get(deployment, 0.0) >= line.forbidden
