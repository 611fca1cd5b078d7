"""How every command finds its configuration and Redis, and how it refuses to start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fakes.configs import settings

from pipeline import lockfile, startup
from pipeline.errors import ConfigurationError
from pipeline.lockfile import Running
from pipeline.settings import Secret, TransportSettings

CONFIG = (
    "model_list: [{model_name: a, litellm_params: {model: echo/echo}}]\nenvironment_variables: {ONE: '1', TWO: '2'}\n"
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REDIS_URL", "PROMPTMILL_CONFIG", "PROMPTMILL_DATA_DIR", "PROMPTMILL_WITHHELD", "ONE", "TWO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONE", "0")  # so that what the configuration sets is taken back after the test
    monkeypatch.setenv("TWO", "0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)


def test_the_variables_of_the_configuration_are_set_except_those_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_WITHHELD", "TWO,THREE")
    startup.Source("config.yaml", None).load()
    assert (os.environ["ONE"], os.environ["TWO"]) == ("1", "0")


def test_a_configuration_that_cannot_be_read_ends_the_process_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        startup.Source("none.yaml", None).load()
    assert capsys.readouterr().err.startswith("promptmill: ")


def test_the_request_timeout_of_the_command_line_reaches_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_REQUEST_TIMEOUT", "5000")
    ingress = startup.Source("config.yaml", None).load().ingress
    assert (ingress.request_timeout, ingress.max_request_timeout) == (5000, 5000)
    with pytest.raises(ConfigurationError, match="PROMPTMILL_REQUEST_TIMEOUT=soon"):
        startup.with_request_timeout(settings(), "soon")


def test_redis_is_where_the_environment_says_then_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = settings(transport=TransportSettings(url=Secret("redis://configured")))
    assert startup.redis_url(configured) == "redis://configured"
    monkeypatch.setenv("REDIS_URL", "redis://environment")
    assert startup.redis_url(configured) == "redis://environment"
    assert startup.find_redis(None, None) == "redis://environment"


def test_a_redis_url_from_a_variable_that_is_not_set_is_an_error() -> None:
    configured = settings(transport=TransportSettings(url=Secret("os.environ/NOT_SET")))
    with pytest.raises(ConfigurationError, match="NOT_SET"):
        startup.configured_url(configured, {})
    assert startup.configured_url(configured, {"NOT_SET": "redis://set"}) == "redis://set"
    assert startup.configured_url(settings(), {}) is None


def test_without_either_it_is_the_embedded_server_of_the_data_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL is not set"):
        startup.find_redis(None, None)
    with lockfile.hold(tmp_path / ".promptmill") as lock:
        with pytest.raises(ConfigurationError):  # it starts, and says nothing yet
            startup.find_redis(None, None)
        lock.publish(Running(pid=1, redis_url="unix:///ours"))
        assert startup.find_redis(None, None) == "unix:///ours"
        assert startup.find_redis("config.yaml", None) == "unix:///ours"
        assert startup.find_redis(None, str(tmp_path / ".promptmill")) == "unix:///ours"


def test_threads_that_compute_give_way_to_the_event_loop_soon() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        startup.yield_often()
        assert sys.getswitchinterval() == pytest.approx(startup.YIELD_AFTER)
    finally:
        sys.setswitchinterval(before)
