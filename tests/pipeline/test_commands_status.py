"""What `status` and `dead` show of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.servers import start_server
from redis import Redis

from pipeline import cli
from pipeline.commands_status import duration
from pipeline.transport import keyspace


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_dead_letters_are_listed_shown_and_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"job": "0-a", "stage": "dispatch", "reason": "poison", "deliveries": "5", "at": "1000", "model": "gpt-4"}
    with start_server(tmp_path) as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        with Redis.from_url(server.url) as client:
            ids = [client.xadd(keyspace.DEAD, fields).decode() for _ in range(3)]
        assert run("dead", "list") == 0
        assert capsys.readouterr().out.splitlines()[0].split() == [
            ids[2], "1970-01-01", "00:00:01Z", "dispatch", "gpt-4", "poison",
        ]  # fmt: skip
        assert run("dead", "list", "--json", "--limit", "1") == 0
        assert json.loads(capsys.readouterr().out)["id"] == ids[2]
        assert run("dead", "show", ids[0]) == 0
        assert "reason      poison" in capsys.readouterr().out
        assert run("dead", "show", "--json", ids[0]) == 0
        assert json.loads(capsys.readouterr().out)["deliveries"] == 5
        assert run("status") == 1
        assert "dead letters  3   (promptmill dead list)" in capsys.readouterr().out
        assert run("dead", "show", "0-a") == 1
        assert "there is no dead letter 0-a" in capsys.readouterr().err
        assert run("dead", "drop", ids[0], "9-9", "x") == 1
        assert run("dead", "drop", "--all") == 0
        assert capsys.readouterr().out == "1 removed\n2 removed\n"


@pytest.mark.parametrize("words", [("dead", "-c", "c.yaml", "list"), ("dead", "list", "-c", "c.yaml")])
def test_a_configuration_may_be_named_before_the_sub_command_or_after_it(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with start_server(tmp_path) as server:
        Path("c.yaml").write_text(f"promptmill_settings: {{redis_url: {server.url}}}\n")
        assert run(*words) == 0
    assert "no dead letters" in capsys.readouterr().err


def test_a_data_directory_may_be_named_after_the_sub_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert run("dead", "show", "1-1", "--data-dir", str(tmp_path / "mine")) == 2
    assert "mine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.4, "1 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_durations_are_told_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
