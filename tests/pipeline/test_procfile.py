"""Which processes make up the gateway, and whose Procfile is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.procfile import choose, packaged, parse, scales

ROOT = Path(__file__).parent.parent.parent


def test_the_packaged_procfile_is_the_one_of_the_repository() -> None:
    assert (ROOT / "Procfile").read_text() == (ROOT / "pipeline" / "Procfile").read_text()
    assert list(packaged().commands) == ["ingress", "resolve", "dispatch", "resolve-batch", "dispatch-batch", "feed"]


def test_a_procfile_beside_the_configuration_is_used_when_all_its_commands_are_ours(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text(
        "# ours\n\ningress: promptmill ingress\nboth: promptmill worker resolve dispatch\n"
    )
    found = choose(None, tmp_path)
    assert list(found.commands) == ["ingress", "both"]
    assert not found.notice
    assert (found.part("ingress"), found.part("both")) == ("ingress", "worker")
    assert (found.stages("ingress"), found.stages("both")) == ((), ("resolve", "dispatch"))


@pytest.mark.parametrize(
    "text",
    ["web: gunicorn app\n", "web: promptmill ingress\nclock: python clock.py\n", "web: promptmillx ingress\n"],
)
def test_a_foreign_procfile_is_left_alone_and_a_line_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "Procfile").write_text(text)
    found = choose(None, tmp_path)
    assert found.commands == packaged().commands
    assert "is not run" in found.notice
    assert "--procfile" in found.notice


@pytest.mark.parametrize("content", [b"not a procfile\n", b"\xff\xfe", b""])
def test_something_else_called_procfile_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Procfile").write_bytes(content)
    assert "is not run" in choose(None, tmp_path).notice


def test_without_a_procfile_nothing_is_said(tmp_path: Path) -> None:
    assert choose(None, tmp_path) == packaged()


@pytest.mark.parametrize(
    ("words", "stages", "lanes"),
    [
        ("resolve dispatch", ("resolve", "dispatch"), ("live", "batch")),
        ("dispatch --lane live -c live", ("dispatch",), ("live",)),
        ("--lane batch dispatch", ("dispatch",), ("batch",)),
        ("--debug --lane=batch --config here resolve", ("resolve",), ("batch",)),
    ],
)
def test_stages_and_lanes_of_a_worker_are_read_from_its_command(
    words: str, stages: tuple[str, ...], lanes: tuple[str, ...]
) -> None:
    found = parse(f"some: promptmill worker {words}\n", "F")
    assert (found.stages("some"), found.lanes("some")) == (stages, lanes)


def test_a_procfile_that_was_asked_for_may_hold_any_command(tmp_path: Path) -> None:
    path = tmp_path / "Own"
    path.write_text("metrics: exporter --listen '$ADDRESS $OTHER'\n")
    found = choose(str(path), tmp_path)
    assert found.words("metrics", {"ADDRESS": "a b"}) == ["exporter", "--listen", "a b $OTHER"]
    assert found.part("metrics") == ""


def test_a_procfile_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--procfile"):
        choose(str(tmp_path / "none"), tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: promptmill ingress\na: promptmill ingress\n", "F:2: a second process 'a'"),
        ("promptmill ingress\n", "F:1: 'promptmill ingress' is not a process"),
        ("a: promptmill ingress && promptmill worker x\n", "needs a shell"),
        ("a: promptmill 'ingress\n", "mind the quotes"),
        ("# nothing\n", "names no process"),
    ],
)
def test_a_procfile_that_cannot_be_run_says_where_and_why(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse(text, "F")


def test_scales_are_one_unless_told_otherwise() -> None:
    others = {"ingress": 1, "resolve-batch": 1, "dispatch-batch": 1, "feed": 1}
    assert scales(["dispatch=4", "resolve=0"], packaged()) == {**others, "resolve": 0, "dispatch": 4}


@pytest.mark.parametrize("item", ["dispatch", "dispatch=", "dispatch=x", "dispatch=-1", "dispatch=1001", "nobody=2"])
def test_a_scale_that_makes_no_sense_is_refused(item: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--scale {item}"):
        scales([item], packaged())
