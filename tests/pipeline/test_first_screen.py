"""What `up` says once it is ready."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from fakes.configs import deployment, settings

from pipeline import first_screen
from pipeline.first_screen import Ready
from pipeline.settings import Key, Notice, Secret, Settings

KEYED = settings(
    deployment("off", api_key=Secret("os.environ/UNSET")),
    deployment("openai/*", "openai/*"),
    deployment("both", "openai/a", api_key=Secret("os.environ/UNSET")),
    deployment("both", "openai/b"),
    keys=(
        Key(name="master", values=(Secret("sk-secret"),), master=True),
        Key(name="a", values=(Secret("os.environ/A"),)),
    ),
    notices=(
        Notice(message="odd", file="c.yaml", line=3),
        Notice(message="odder", file="c.yaml"),
        Notice(message="oddest"),
    ),
)


def ready(configured: Settings, **changes: Any) -> Ready:
    fields: dict[str, Any] = {"managers": (), "example": {}, "environment": {}, **changes}
    return Ready(
        version="1.2.3",
        url="http://127.0.0.1:4000",
        settings=configured,
        redis="embedded",
        processes={"ingress": 1, "resolve": 2},
        **fields,
    )


def text(of: Ready) -> str:
    return "\n".join(f"{label} {value}" for label, value in first_screen.lines(of))


def test_it_names_keys_and_never_shows_one() -> None:
    said = text(ready(KEYED))
    assert "key master (configured), a (from $A)" in said
    assert 'Bearer $A"' in said
    assert "sk-secret" not in said
    assert "any (loopback only)" in text(ready(settings()))
    assert "Authorization" not in text(ready(settings()))


def test_a_key_that_stands_in_the_file_is_left_for_the_reader_to_fill_in() -> None:
    keys = (Key(name="master", values=(Secret("sk-secret"),), master=True),)
    assert 'Bearer YOUR-KEY"' in text(ready(settings(keys=keys)))


def test_it_says_which_models_are_disabled_and_tries_one_that_is_not() -> None:
    said = text(ready(KEYED))
    assert "off -> openai/gpt-4   disabled: the variable UNSET is not set" in said
    assert "both -> openai/a, openai/b   partly disabled" in said
    assert '"model": "both"' in said
    assert '"model": "MODEL"' in text(ready(Settings()))
    assert "add some under model_list" in text(ready(Settings()))


def test_a_model_that_no_provider_serves_is_told_and_not_tried() -> None:
    configured = settings(deployment("typo", "opanai/x"), deployment("good", "openai/x"))
    said = text(ready(configured, unusable={"typo-opanai/x": "there is no provider 'opanai'"}))
    assert "typo -> opanai/x   disabled: there is no provider 'opanai'" in said
    assert '"model": "good"' in said


def test_it_shows_managers_and_notices_with_their_places() -> None:
    managers = ({"path": "m.a", "kind": "A", "ignored": ["async_log"]}, {"path": "m.b", "kind": "B", "ignored": []})
    said = text(ready(KEYED, managers=managers))
    assert "managers m.a (A)   its async_log does not run here\n m.b (B)" in said
    assert "note c.yaml:3: odd\n c.yaml: odder\n oddest" in said


def test_the_call_to_try_holds_the_example() -> None:
    assert '"prompt_id": "1234"' in text(ready(settings(), example={"prompt_id": "1234"}))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "no_colour", "coloured"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_it_is_coloured_on_a_terminal_only(
    terminal: bool, no_colour: bool, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    first_screen.show(ready(settings()))
    assert "http://127.0.0.1:4000/v1" in stream.getvalue()
    assert ("\033[" in stream.getvalue()) is coloured


def test_a_server_that_may_lose_jobs_is_warned_of() -> None:
    assert "warning redis keeps no append-only file" in text(
        ready(settings(), concerns=("redis keeps no append-only file",))
    )


def test_it_warns_of_a_part_without_a_process() -> None:
    said = text(ready(settings(), unserved=("ingress", "dispatch", "dispatch (batch)")))
    assert "warning no ingress process runs here" in said
    assert "\n no process here works on dispatch: unless one does elsewhere, requests end in 503 no_worker" in said
    assert "\n no process here works on dispatch (batch): unless one does elsewhere, batches wait" in said


def test_after_a_reload_it_says_what_came_and_what_went() -> None:
    before = ready(settings(deployment("stays"), deployment("goes")))
    after = ready(settings(deployment("stays"), deployment("comes"), keys=KEYED.keys))
    assert first_screen.changes(before, after) == (
        "reloaded: key master (configured), a (from $A), models comes -> openai/gpt-4\n"
        "no more: key any (loopback only), models goes -> openai/gpt-4"
    )
    assert first_screen.changes(before, ready(settings(deployment("stays")))) == (
        "reloaded\nno more: models goes -> openai/gpt-4"
    )
    assert "names they had" in first_screen.changes(before, before)


def test_of_a_hundred_models_that_came_some_are_named() -> None:
    many = ready(settings(deployment(), *(deployment(str(number)) for number in range(100))))
    assert first_screen.changes(ready(settings()), many).endswith("models 7 -> openai/gpt-4, and 92 more")
