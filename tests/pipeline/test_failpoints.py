"""Failpoints: what they accept, that each fires where it was armed, and that unarmed they are nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import failpoints
from pipeline.failpoints import NAMES, VARIABLE, FailpointError, Failpoints

ROOT = Path(failpoints.__file__).parents[1]


def test_nothing_is_armed_unless_the_variable_is_set() -> None:
    assert failpoints.ARMED is None


def test_every_name_is_reached_somewhere_and_every_place_that_is_reached_has_a_name() -> None:
    sources = "\n".join(
        path.read_text() for part in ("ingress", "pipeline", "workers") for path in (ROOT / part).rglob("*.py")
    )
    places = set(re.findall(r'failpoints\.reach(?:_on_thread)?[(,]\s*"([a-z_.]+)"', sources))
    for point in (
        *re.findall(r'_reach\("([a-z_]+)"', sources),
        *re.findall(r'\{self\._spec\.name\}\.([a-z_]+)"', sources),
    ):
        places |= {f"resolve.{point}", f"dispatch.{point}"}
    assert places == NAMES


def test_no_place_costs_more_than_a_look_at_a_constant() -> None:
    place = re.compile(r"^(.*)\n +await (?:failpoints\.|_)reach\(|^(.*)\n +failpoints\.reach_on_thread\(", re.MULTILINE)
    for part in ("ingress", "pipeline", "workers"):
        for path in (ROOT / part).rglob("*.py"):
            for before in ("".join(found) for found in place.findall(path.read_text())):
                assert before.strip().startswith(("if failpoints.ARMED", "for stage in")), f"{path}: {before}"


@pytest.mark.parametrize("text", ["resolve.nowhere=exit", "resolve.after_read=explode", "resolve.after_read", "x"])
def test_what_would_test_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write name=exit"):
        Failpoints(text)


def test_an_error_is_raised_each_time_it_is_reached() -> None:
    armed = Failpoints("dispatch.before_provider=error, resolve.after_read=sleep(250)")
    for _ in range(2):
        with pytest.raises(FailpointError, match=r"dispatch\.before_provider"):
            armed.reach("dispatch.before_provider")
    assert armed.reach("resolve.after_read") == 0.25
    assert armed.reach("resolve.before_hook") == 0


def test_a_disk_that_fails_raises_what_the_kernel_would() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        Failpoints("feed.before_fsync=eio").reach("feed.before_fsync")


def test_a_file_in_the_directory_fires_once_for_all(tmp_path: Path) -> None:
    one, other = Failpoints(str(tmp_path)), Failpoints(str(tmp_path))
    assert one.reach("resolve.after_read") == 0
    (tmp_path / "resolve.after_read").write_text("sleep(1500)")
    assert one.reach("resolve.after_read") == 1.5
    assert other.reach("resolve.after_read") == 0


def test_exit_is_a_kill_that_nothing_in_the_process_notices(tmp_path: Path) -> None:
    (tmp_path / "resolve.after_read").write_text("exit")
    code = "import atexit, pipeline.failpoints as f; atexit.register(print, 'bye'); f.ARMED.reach('resolve.after_read')"
    ended = subprocess.run(
        [sys.executable, "-c", code], env={VARIABLE: str(tmp_path)}, capture_output=True, cwd=ROOT, check=False
    )
    assert (ended.returncode, ended.stdout) == (-9, b"")
