"""The room of batch jobs beside live ones."""

from __future__ import annotations

from pipeline.transport.room import LEAST, LONG, Room


def turned(room: Room, seconds: float, held: int, times: int = 1, *, live: bool = True) -> int:
    """Return the limit after so many turns alike."""
    for _ in range(times):
        room.turned(seconds, min(held, room.limit), live=live)
    return room.limit


def test_long_turns_take_room_from_what_is_held() -> None:
    room = Room(6000)
    assert turned(room, 2 * LONG, 1000) == 800
    assert turned(room, 2 * LONG, 1000) == 640


def test_some_room_is_always_left() -> None:
    assert turned(Room(6000), 1.0, 6000, 100) == LEAST
    assert turned(Room(6000), 1.0, 0) == LEAST
    assert turned(Room(8), 1.0, 8) == 8, "a stage of few slots"


def test_room_comes_back_within_seconds_of_short_turns_and_never_beyond_the_reserve() -> None:
    room = Room(6000)
    turned(room, 1.0, 6000, 100)
    assert turned(room, 0.0, 6000, 20) < 200
    assert turned(room, 0.0, 6000, 200) == 6000


def test_without_live_jobs_nothing_is_held_back() -> None:
    room = Room(6000)
    turned(room, 1.0, 6000, 100)
    assert turned(room, 1.0, 6000, live=False) == 6000


def test_room_that_is_not_used_does_not_grow() -> None:
    room = Room(6000)
    assert turned(room, 2 * LONG, 100) == 80
    assert turned(room, 0.0, 40, 100) == 80
    assert turned(room, 0.0, 41) == 85
