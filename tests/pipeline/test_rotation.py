"""What a running process takes over from a new configuration, and what it only tells."""

from __future__ import annotations

from fakes.configs import deployment, settings

from pipeline.rotation import Rotation, differences, rotated
from pipeline.settings import Callback, Key, RouterSettings, Secret, Settings

OLD = settings(deployment("a", line=1), deployment("b", line=2), keys=(Key(name="k", values=(Secret("1"),)),))
OTHER = Secret("sk-other")


def test_keys_are_taken_over_and_nothing_else() -> None:
    keys = (Key(name="new", values=(Secret("2"),)),)
    new = settings(
        deployment("b", line=7, api_key=OTHER, timeout=3.0),
        deployment("c", line=9),
        keys=keys,
        environment={"A": "b"},
        router=RouterSettings(retries=9),
    )
    found = rotated(OLD, new)
    assert [(d.model_name, d.api_key, d.timeout) for d in found.deployments] == [
        ("a", Secret("sk-upstream"), None),
        ("b", OTHER, None),
    ]
    assert (found.keys, found.environment, found.router) == (keys, {"A": "b"}, OLD.router)


def test_a_key_for_another_host_does_not_reach_the_old_one() -> None:
    new = settings(deployment("a", api_base="https://new.example", api_key=OTHER), deployment("b", api_key=OTHER))
    assert [d.api_key for d in rotated(OLD, new).deployments] == [Secret("sk-upstream"), OTHER]


def test_what_needs_a_restart_is_told_in_words_of_the_file() -> None:
    assert differences(OLD, OLD) == []
    moved = settings(deployment("a", line=5), deployment("b", line=6), callbacks=(), keys=())
    assert differences(OLD, moved) == []
    changed = settings(deployment("a"), callbacks=(Callback(path="m.m"),), router=RouterSettings(retries=9))
    assert differences(OLD, changed) == ["model_list", "callbacks", "router_settings"]


def test_everybody_who_wants_to_know_is_told() -> None:
    told: list[Settings] = []
    rotation = Rotation()
    rotation(OLD)
    rotation.also(told.append)
    rotation(OLD)
    assert told == [OLD]
