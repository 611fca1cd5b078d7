"""A real pseudo-terminal with a command in it, and the screen it would show."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CTRL_C = b"\x03"
COLUMNS, ROWS = 110, 16

# The first to open a terminal in a session of its own gets it as the one whose keys send signals. Tests that run as a
# shell's background job have been told to ignore Ctrl-C, and so would the command.
_TAKE_TERMINAL = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
)
_SEQUENCE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|\x1b")

Cell = tuple[str, str]
"""A character and how it looks: the numbers of the last SGR sequence."""


class Screen:
    """What a terminal shows, as far as our output needs it: text, line feeds, cursor up, erased lines, looks."""

    def __init__(self) -> None:
        self.rows: list[dict[int, Cell]] = [{}]
        self._row = self._column = 0
        self._look = ""

    def feed(self, text: str) -> None:
        """Show more output; control sequences come whole."""
        for numbers, letter, control, plain in _SEQUENCE.findall(text):
            if plain:
                self._write(plain)
            elif control == "\r":
                self._column = 0
            elif control == "\n":
                self._row += 1
                self.rows += [{} for _ in range(self._row + 1 - len(self.rows))]
            elif letter == "A":
                self._row = max(0, self._row - int(numbers or 1))
            elif letter == "K":
                self.rows[self._row] = {}
            elif letter == "m":
                self._look = numbers if numbers not in ("", "0") else ""

    def _write(self, text: str) -> None:
        for character in text:
            self.rows[self._row][self._column] = (character, self._look)
            self._column += 1

    def lines(self) -> list[list[Cell]]:
        """Return the last rows that fit."""
        blank = (" ", "")
        shown = self.rows[-ROWS:] if self.rows[-1] else self.rows[:-1][-ROWS:]
        return [[row.get(at, blank) for at in range(max(row, default=-1) + 1)] for row in shown]

    @property
    def text(self) -> str:
        return "\n".join("".join(character for character, _ in line) for line in self.lines())


class Terminal:
    """A command in a terminal. `output` has everything it wrote, with the second it came in."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.output: list[tuple[float, str]] = []
        self.screen = Screen()
        self._master = master
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._begun = time.monotonic()

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._master, keys)

    def wait_for(self, shown: str | Callable[[str], object], timeout: float = 30) -> str:
        """Return the screen as soon as it shows something."""
        limit = time.monotonic() + timeout
        while True:
            text = self.screen.text
            if (shown in text) if isinstance(shown, str) else shown(text):
                return text
            assert time.monotonic() < limit, f"not within {timeout} s; it shows:\n{text}"
            assert self.read(0.2) or self.process.poll() is None, f"it has ended, and shows:\n{text}"

    def end(self, timeout: float = 30) -> int:
        """Return the exit status, once the command has ended."""
        limit = time.monotonic() + timeout
        while self.read(0.2) or self.process.poll() is None:
            assert time.monotonic() < limit, f"it goes on, and shows:\n{self.screen.text}"
        return self.process.wait()

    def read(self, timeout: float) -> bool:
        """Take what comes within `timeout` seconds; whether something came."""
        ready, _, _ = select.select([self._master], [], [], timeout)
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # EIO: nobody has the terminal any more
            return False
        if text := self._decode(data):
            self.output.append((time.monotonic() - self._begun, text))
            self.screen.feed(text)
        return bool(data)


@contextmanager
def in_terminal(*arguments: str, cwd: Path, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a `promptmill` command in a terminal of its own, and end it in the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-c", _TAKE_TERMINAL, sys.executable, "-P", "-m", "pipeline", *arguments]
    variables = {**environment, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    variables.pop("COLORTERM", None)
    process = subprocess.Popen(
        command, cwd=cwd, env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
