"""What `up` decides: which processes there are, what nobody serves, and what a reload cannot change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.configs import settings

from pipeline.errors import ConfigurationError
from pipeline.plan import Plan, Wishes, decide, renewed, unserved
from pipeline.settings import Callback, Secret, Settings, StorageSettings, TransportSettings

OURS = "ingress: promptmill ingress\nresolve: promptmill worker resolve\ndispatch: promptmill worker dispatch\n"


def plan(directory: Path, procfile: str = OURS, *scale: str, configured: Settings | None = None, **wishes: Any) -> Plan:
    path = directory / "F"
    path.write_text(procfile)
    configured = configured or settings(directory=str(directory))
    return decide(configured, {}, Wishes(host="127.0.0.1", port=0, procfile=str(path), scale=scale, **wishes))


@pytest.mark.parametrize("command", ["promptmill work dispatch", "promptmill", "promptmill up", "promptmill status"])
def test_a_command_that_is_no_process_of_a_gateway_ends_the_start(tmp_path: Path, command: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'odd' runs .*no process of a gateway; there is feed, ingress"):
        plan(tmp_path, f"{OURS}odd: {command}\n")


def test_what_no_process_does_is_known(tmp_path: Path) -> None:
    managed = settings(directory=str(tmp_path), callbacks=(Callback(path="mine.mine"),))
    assert unserved(plan(tmp_path)) == ()
    assert unserved(plan(tmp_path, OURS, "dispatch=0", "resolve=0")) == ("dispatch",)
    assert unserved(plan(tmp_path, OURS, "resolve=0", configured=managed)) == ("resolve",)
    assert unserved(plan(tmp_path, "all: promptmill worker resolve dispatch\n", configured=managed)) == ("ingress",)
    assert unserved(plan(tmp_path, "other: sleep 1\n")) == ("ingress", "dispatch")
    apart = OURS.replace("dispatch\n", "dispatch --lane live\n")
    assert unserved(plan(tmp_path, apart)) == ()
    assert unserved(plan(tmp_path, f"{apart}feed: promptmill feed\n")) == ("dispatch (batch)",)
    assert unserved(plan(tmp_path, f"{OURS}feed: promptmill feed\n", configured=managed)) == ()


def test_a_reload_keeps_what_only_a_restart_changes(tmp_path: Path) -> None:
    def configured(data_dir: str, **transport: Any) -> Settings:
        storage = StorageSettings(url=f"s3://{data_dir}")
        return settings(
            directory=str(tmp_path), data_dir=data_dir, storage=storage, transport=TransportSettings(**transport)
        )

    old = plan(tmp_path, configured=configured("here"))
    new = plan(tmp_path, configured=configured("there", url=Secret("redis://new"), maxmemory=1, grace=9.0))
    both, kept = renewed(old, new)
    assert kept == ("data_dir", "storage", "redis_url", "maxmemory")
    assert (both.settings.data_dir, both.redis_url, both.settings.transport.maxmemory) == ("here", None, None)
    assert both.settings.storage.url == "s3://here"
    assert both.settings.transport.grace == 9.0
    assert renewed(old, msgspec.structs.replace(old, counts={})) == (msgspec.structs.replace(old, counts={}), ())
