"""What `status` and `dead` show of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from fakes.servers import start_server
from redis import Redis

from pipeline import cli, metrics
from pipeline.commands_status import absent, duration, table
from pipeline.job import LANES, ErrorFields, Reply, decode_reply
from pipeline.transport import deadletters, keyspace
from pipeline.transport.overview import Overview, ServerOverview
from pipeline.transport.registry import ProcessInfo


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


def test_dead_letters_are_chosen_by_stage_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deadletters, "PAGE", 2)
    kinds = [("resolve", "poison"), ("dispatch", "bug: KeyError"), ("dispatch", "poison"), ("dispatch", "unreadable")]

    def listed(*words: str) -> list[tuple[str, str]]:
        assert run("dead", "list", "--json", *words) == 0
        letters = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        return [(letter["stage"], letter["reason"]) for letter in letters]

    with start_server(tmp_path) as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        with Redis.from_url(server.url) as client:
            ids = [
                client.xadd(keyspace.DEAD, {"job": "0-a", "stage": stage, "reason": reason}).decode()
                for stage, reason in kinds
            ]
            kept = client.xadd(
                keyspace.DEAD, {"stage": "dispatch", "reason": "bug: TypeError", "body": b'{"x":"\xff"}'}
            )
        assert listed("--reason", "poison") == [kinds[2], kinds[0]]
        assert listed("--reason", "bug") == [("dispatch", "bug: TypeError"), kinds[1]]
        assert listed("--reason", "bug: KeyError") == [kinds[1]]
        assert listed("--stage", "resolve") == [kinds[0]]
        assert listed("--stage", "resolve", "--reason", "bug") == []
        assert listed("--limit", "1", "--reason", "poison") == [kinds[2]]
        assert run("dead", "show", ids[0], "--body") == 1
        assert "no body is kept" in capfd.readouterr().err
        assert run("dead", "show", kept.decode(), "--body") == 0
        assert capfd.readouterr().out.encode(errors="surrogateescape") in (b'{"x":"\xff"}', '{"x":"\ufffd"}'.encode())
        assert run("dead", "drop", "--all", "--stage", "dispatch", "--reason", "poison") == 0
        assert run("dead", "drop", "--all", "--reason", "nothing", "--json") == 0
        assert capfd.readouterr().out == '1 removed\n{"dropped":0}\n'
        assert listed() == [("dispatch", "bug: TypeError"), kinds[3], kinds[1], kinds[0]]
        assert run("dead", "drop", ids[0], "--stage", "resolve") == 2


def test_only_lines_of_running_batches_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_server(tmp_path) as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        with Redis.from_url(server.url) as client:
            client.set(keyspace.lease("ab"), "feed")
            for batch in ("ab", "cd"):
                client.xadd(keyspace.lines(batch), {"o": b""})
            ids = [
                client.xadd(
                    keyspace.DEAD, {"job": job, "stage": "dispatch", "reason": "poison", "batch": batch}
                ).decode()
                for job, batch in (("0-ab-7-1.1", "ab"), ("0-cd-8-1.1", "cd"), ("0-live", ""))
            ]
        assert run("dead", "replay", ids[0], "9-9") == 1
        said = capsys.readouterr()
        assert said.out == "1 replayed\n"
        assert "1 not there" in said.err
        assert run("dead", "replay", "--all", "--stage", "dispatch", "--json") == 1
        said = capsys.readouterr()
        assert json.loads(said.out) == {"replayed": 0, "live": 1, "ended": 1, "batches": ["batch_cd"]}
        assert "nobody waits for them" in said.err
        assert "promptmill batch retry-failed BATCH" in said.err
        assert run("dead", "replay") == 2
        with Redis.from_url(server.url) as client:
            word = client.xrange(keyspace.lines("ab"))[1][1][b"t"]
            assert client.xlen(keyspace.DEAD) == 2
    assert decode_reply(word).id == "0-ab-7-1.1"
    assert deadletters.runs_again(decode_reply(word))
    providers = ErrorFields(status=400, type="server_error", code="run_again", message="")
    assert not deadletters.runs_again(Reply(id="0-ab-7-1.1", error=providers)), "a word of the provider's"


def test_status_tells_of_the_server_and_of_what_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics.CLAIMS["resolve",].inc()
    with start_server(tmp_path) as server:
        monkeypatch.setenv("REDIS_URL", server.url)
        with Redis.from_url(server.url) as client:
            client.zadd(keyspace.CONSUMERS, {"me": 2**50})
            client.hset(keyspace.up("me"), mapping={"m": metrics.snapshot()})
            waiting = client.xadd(keyspace.jobs("dispatch", "live"), {"h": b"x"}, id="1-0").decode()
            client.xgroup_create(keyspace.jobs("dispatch", "live"), keyspace.GROUP, id=waiting)
            client.xadd(keyspace.jobs("dispatch", "live"), {"h": b"x"})
        assert run("status", "--json") == 1
        found = json.loads(capsys.readouterr().out)
        (dispatch,) = [s for s in found["stages"] if (s["stage"], s["lane"]) == ("dispatch", "live")]
        assert dispatch["oldest_seconds"] > 10**6
        assert dispatch["lag_seconds"] < 60, "the older one was fetched"
        assert found["server"]["memory_limit"] == 2**30
        assert found["counts"]["claims"]["resolve"] >= 1
        assert run("status") == 1
        shown = capsys.readouterr().out
    assert " of 1024 MiB, append-only file, noeviction when full" in shown
    assert "since the processes started" in shown
    assert "claims          " in shown


def test_a_server_that_tells_nothing_of_itself_is_shown_all_the_same() -> None:
    worker = ProcessInfo(consumer="w", role="worker", stages=("dispatch",), resting={"gpt-4": 41.2})
    words = "\n".join(table(Overview(processes=(worker,), stages=(), dead=0, server=ServerOverview(name="redis"))))
    assert "(model gpt-4 rests for 41 s: its provider is at its limit)" in words
    lines = table(Overview(processes=(), stages=(), dead=0, server=ServerOverview(name="redis.example:6379")))
    assert lines[0] == "redis    redis.example:6379"
    assert lines[-1] == "dead letters  0"


def test_lanes_without_a_process_are_named_and_so_is_what_a_process_serves() -> None:
    def process(role: str, *stages: str, lanes: tuple[str, ...] = LANES) -> ProcessInfo:
        return ProcessInfo(consumer=f"a-{role}", role=role, stages=stages, lanes=lanes)

    there = [process("ingress"), process("worker", "resolve", "dispatch", lanes=("live",))]
    found = Overview(processes=tuple(there), stages=(), dead=0, server=ServerOverview(name="redis"))
    assert "resolve, dispatch (live)" in "\n".join(table(found))
    assert absent(found) == []
    with_feed = msgspec.structs.replace(found, processes=(*there, process("feed")))
    assert absent(with_feed) == ["resolve (batch)", "dispatch (batch)"]
    both = msgspec.structs.replace(found, processes=(*with_feed.processes, process("worker", "dispatch")))
    assert absent(both) == ["resolve (batch)"]


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
