"""The input of a batch: what it is for, and which of its lines run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.batches import CHAT, line

from pipeline.errors import ConfigurationError
from workers.batch_command.inputs import endpoint_of, select


def file(directory: Path, contents: bytes) -> Path:
    path = directory / "in.jsonl"
    path.write_bytes(contents)
    return path


def test_the_endpoint_is_that_of_the_first_line(tmp_path: Path) -> None:
    assert endpoint_of(file(tmp_path, b"\xef\xbb\xbf\n  \n" + line("a"))) == CHAT


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "has no lines"),
        (b"\n \n", "has no lines"),
        (b"\nnonsense", "line 2, is no JSON object"),
        (b"[\n", "line 1, is no JSON object"),
        (b"\x1f\x8b\x08\x00", "is compressed; unpack it"),
        (b'{"custom_id": "a"}', "has no `url`"),
        (b"[" * 100_000, "is no JSON object"),
        (b'{"url": "/v1/audio"}', "no batches of /v1/audio"),
    ],
)
def test_what_is_no_input_is_told_before_it_is_uploaded(tmp_path: Path, contents: bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        endpoint_of(file(tmp_path, contents))


def test_an_input_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        endpoint_of(tmp_path / "nothing")


def test_an_endpoint_that_is_given_spares_no_look_at_the_input(tmp_path: Path) -> None:
    assert endpoint_of(file(tmp_path, b'{"custom_id": "a"}'), CHAT) == CHAT
    with pytest.raises(ConfigurationError, match="has no lines"):
        endpoint_of(file(tmp_path, b""), CHAT)
    with pytest.raises(ConfigurationError, match="no batches of /v1/audio"):
        endpoint_of(file(tmp_path, line("a")), "/v1/audio")


def test_a_pipe_is_no_input_for_it_is_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="no regular file"):
        endpoint_of(tmp_path / "pipe")


def test_without_a_choice_the_file_goes_as_it_is(tmp_path: Path) -> None:
    contents = b"".join(map(line, "abc"))
    chosen = select(file(tmp_path, contents))
    assert b"".join(chosen.pieces()) == contents
    assert (chosen.size, chosen.number(2)) == (len(contents), 2)


def test_lines_are_chosen_by_their_names_and_keep_their_numbers(tmp_path: Path) -> None:
    path = file(tmp_path, line("a") + b"\n" + line("b") + line("c") + b"nonsense\n" + line("d").strip())
    rest = select(path, without={"a", "c"})
    assert b"".join(rest.pieces()) == line("b") + b"nonsense\n" + line("d").strip()
    assert [rest.number(n) for n in (1, 2, 3)] == [3, 5, 6]
    some = select(path, wanted={"c", "b"})
    assert b"".join(some.pieces()) == line("b") + line("c")
    assert select(path, wanted={"z"}).size == 0


def test_a_file_that_becomes_shorter_meanwhile_is_told(tmp_path: Path) -> None:
    path = file(tmp_path, line("a") + line("b"))
    chosen = select(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="shorter"):
        list(chosen.pieces())
