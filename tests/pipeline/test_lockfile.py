"""One gateway for each data directory, and how others find it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import lockfile
from pipeline.errors import ConfigurationError
from pipeline.lockfile import Running


def test_a_held_directory_tells_who_holds_it_and_nothing_is_left_afterwards(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with lockfile.hold(directory) as lock:
        assert lockfile.running_in(directory) == Running(pid=os.getpid())
        lock.publish(Running(pid=os.getpid(), redis_url="unix:///x"))
        assert lockfile.running_in(directory) == Running(pid=os.getpid(), redis_url="unix:///x")
    assert lockfile.running_in(directory) is None
    assert list(directory.iterdir()) == []


def test_a_second_holder_is_refused_and_told_the_process(tmp_path: Path) -> None:
    with lockfile.hold(tmp_path):
        with (
            pytest.raises(ConfigurationError, match=f"process {os.getpid()} already runs") as refused,
            lockfile.hold(tmp_path),
        ):
            pass
        assert "--data-dir" in refused.value.hint
        assert lockfile.running_in(tmp_path) is not None


def test_what_a_killed_holder_left_behind_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; from pipeline import lockfile\n"
        "with lockfile.hold(pathlib.Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    assert (tmp_path / lockfile.NAME).exists()
    assert lockfile.running_in(tmp_path) is None
    with lockfile.hold(tmp_path):
        assert lockfile.running_in(tmp_path) == Running(pid=os.getpid())


def test_a_lock_with_nothing_readable_in_it_is_still_a_lock(tmp_path: Path) -> None:
    with lockfile.hold(tmp_path):
        (tmp_path / lockfile.NAME).write_text("")
        assert lockfile.running_in(tmp_path) is None
        with pytest.raises(ConfigurationError, match="another process"), lockfile.hold(tmp_path):
            pass


def test_a_lock_that_is_removed_while_it_is_opened_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / lockfile.NAME, lockfile.fcntl.flock
    once = iter([path.unlink])

    def flock(descriptor: int, how: int) -> None:
        real(descriptor, how)
        next(once, lambda: None)()  # the holder goes between our open and our lock

    monkeypatch.setattr(lockfile.fcntl, "flock", flock)
    with lockfile.hold(tmp_path):
        assert path.exists()


def test_a_directory_that_cannot_be_written_names_both_ways_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as refused, lockfile.hold(tmp_path / "file" / "data"):
        pass
    assert "--data-dir" in refused.value.hint
    assert "PROMPTMILL_DATA_DIR" in refused.value.hint
