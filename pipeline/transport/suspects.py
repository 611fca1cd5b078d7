"""How many jobs that came back may run in one process at a time."""

from __future__ import annotations


def suspect_caps(max_deliveries: int, slots: int) -> dict[int, int]:
    """
    Return how many deliveries of each number from 2 on may run in one process at a time.

    A job that comes back may be the one that killed its process. The circle of suspects narrows geometrically, down to
    one on the last delivery, so a poison job dies alone and its neighbours are answered.
    """
    return {
        number: max(1, round(slots ** ((max_deliveries - number) / (max_deliveries - 1))))
        for number in range(2, max_deliveries + 1)
    }
