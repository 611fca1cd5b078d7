"""Whether a process has lost the terminal it was started from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import terminal
from pipeline.terminal import Terminal


def test_a_terminal_that_is_gone_was_closed_and_one_that_never_was_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tty"
    monkeypatch.setattr(terminal, "PATH", str(path))
    without = Terminal()
    path.touch()
    has_one = Terminal()
    assert not has_one.closed()
    path.unlink()
    assert has_one.closed()
    assert not without.closed()
