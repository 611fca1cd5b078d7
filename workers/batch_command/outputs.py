"""What a batch came to, as files beside each other: answers, and errors with reason and hint; all of it or nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from pipeline.errors import ConfigurationError, FileDamaged, StorageFull
from workers.batch_command.causes import Causes
from workers.batch_command.gateway import Batch, Gateway
from workers.batch_command.inputs import custom_id
from workers.batch_command.screens import Screen
from workers.batch_command.watching import patiently

_read_line: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Targets:
    """Where the results go: `out.jsonl`, and the failures beside it in `out.errors.jsonl`."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.errors = output.with_name(f"{output.stem}.errors{output.suffix}")
        self.state = output.with_name(f"{output.name}.promptmill")

    def check(self, source: Path) -> None:
        """Raise ConfigurationError if nothing can be written there, or only in the place of the input."""
        for path in (self.output, self.errors):
            if path.exists() and path.samefile(source):
                raise ConfigurationError(f"{path} is the input, and results go there; choose another place with -o")
        if not os.access(self.output.parent, os.W_OK):
            raise ConfigurationError(f"{self.output} cannot be written; choose another place with -o")

    def part(self, file_id: str) -> Path:
        """Where a download stands until it is complete; of the same file it goes on there."""
        return self.output.with_name(f"{self.output.name}.{file_id[-8:]}.part")


def custom_ids(path: Path) -> set[str]:
    """Return the `custom_id`s of a file of results; none when there is no such file. Raises ConfigurationError."""
    names: set[str] = set()
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise ConfigurationError(f"{path} is no regular file; choose another place with -o")
        with path.open("rb") as file:
            for line in file:
                name = custom_id(line)
                if name is None:
                    raise ConfigurationError(
                        f"{path} is there and is no output of a batch", hint="choose another place with -o, or move it"
                    )
                names.add(name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}); choose another place with -o") from None
    return names


def collect(gateway: Gateway, batch: Batch, targets: Targets, known: set[str], screen: Screen, again: str) -> Causes:
    """
    Bring the results of a batch to this machine, beside the answers `known` so far; return why lines failed.

    `again` is what would run those again. Raises FileDamaged, and StorageFull; then the same command goes on where
    this one was.
    """
    causes = Causes(again)
    with _writing(targets.output):
        parts = [
            None if file_id is None else _download(gateway, file_id, targets.part(file_id), screen)
            for file_id in (batch.output_file_id, batch.error_file_id)
        ]
        answers, errors = parts
        if answers is not None:
            _merge(answers, targets.output, known)
        elif not known:
            targets.output.unlink(missing_ok=True)  # of a run before `--fresh`
        _write_errors(errors, targets.errors, known, causes)
    for part in parts:
        if part is not None:
            part.unlink(missing_ok=True)
    return causes


def fetch(gateway: Gateway, file_id: str, path: Path, screen: Screen) -> None:
    """Bring one file to this machine, whole or not at all. Raises StorageFull and FileDamaged."""
    with _writing(path):
        part = Targets(path).part(file_id)
        _download(gateway, file_id, part, screen)
        part.replace(path)


def _download(gateway: Gateway, file_id: str, part: Path, screen: Screen) -> Path:
    """Write a file to `part`, from where an earlier try came to; what is lost on the way is asked for again."""

    def go_on() -> str:
        with part.open("ab") as file:
            _claim(file)
            with gateway.content(file_id, file.tell()) as found:
                for piece in found.pieces:
                    file.write(piece)
                    screen.transfer("downloaded", file.tell(), found.size)
            _sync(file)
        return found.sha256

    wanted = patiently(go_on, screen)
    with part.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == wanted
    if not same:
        part.unlink()
        raise damaged(file_id)
    return part


def damaged(file_id: str) -> FileDamaged:
    """Return the error for a file that came as another than it was when it was stored."""
    return FileDamaged(
        f"{file_id} came as another than was stored: its checksum differs",
        hint="give the same command again; if it says so once more, look at the disk of the gateway",
    )


def _claim(file: IO[bytes]) -> None:
    """Raise ConfigurationError if another command is writing this file: two would spoil it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"another command is writing {file.name}", hint="wait for it, and give this one again"
        ) from None


def _merge(answers: Path, output: Path, known: set[str]) -> None:
    """Have an output with the answers it had and those that are new, which `known` gets to know."""
    merged = output.with_name(f"{output.name}.new")
    with merged.open("wb") as new:
        if known:
            with output.open("rb") as old:
                new.writelines(line if line.endswith(b"\n") else line + b"\n" for line in old)
        with answers.open("rb") as found:
            for line in found:
                if (name := _named(line)) not in known:
                    known.add(name)
                    new.write(line)
        _sync(new)
    merged.replace(output)


def _write_errors(errors: Path | None, path: Path, known: set[str], causes: Causes) -> None:
    """Have a file of the lines that failed, each with its reason and what to do; no file when there are none."""
    merged = path.with_name(f"{path.name}.new")
    with merged.open("wb") as new:
        for line in _lines(errors):
            if _named(line) not in known:
                entry = _read_line(line)
                cause = causes.add(entry)
                new.write(msgspec.json.encode({**entry, "reason": cause.reason, "hint": cause.hint}) + b"\n")
        _sync(new)
    if causes.total:
        merged.replace(path)
    else:
        merged.unlink()
        path.unlink(missing_ok=True)


def _named(line: bytes) -> str:
    """Return the `custom_id` of a line of results. Raises FileDamaged."""
    if (name := custom_id(line)) is None:
        raise FileDamaged("a line of the results has no custom_id", hint="report it: it is what the gateway stored")
    return name


def _lines(path: Path | None) -> Iterator[bytes]:
    if path is not None:
        with path.open("rb") as file:
            yield from file


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what may happen to a file into StorageFull."""
    try:
        yield
    except OSError as error:
        raise StorageFull(
            f"the results cannot be written beside {path} ({error.strerror})",
            hint="make room there and give the same command again: the results are kept, nothing runs twice",
        ) from None
