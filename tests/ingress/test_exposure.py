"""Which addresses the gateway may listen on with which keys."""

from __future__ import annotations

import hashlib

import pytest
from fakes.configs import settings as make_settings

from pipeline.errors import ConfigurationError
from pipeline.exposure import check_exposure, is_loopback
from pipeline.settings import Key, Secret, Settings


def with_key(*values: str) -> Settings:
    return make_settings(keys=(Key(name="master", values=tuple(Secret(v) for v in values), master=True),))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert is_loopback(host)
    check_exposure(make_settings(), host, {})
    check_exposure(with_key("sk-1234"), host, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.5", "fe80::1%eth0", "example.com", ""])
def test_elsewhere_a_key_is_needed(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigurationError, match=r"no key is configured.*PROMPTMILL_MASTER_KEY"):
        check_exposure(make_settings(), host, {})
    check_exposure(with_key("a-long-random-value"), host, {})


@pytest.mark.parametrize("value", ["sk-1234", " SK-1234 ", "sk-12345", "sk-test", "changeme"])
def test_a_published_example_is_no_key(value: str) -> None:
    hashed = "sha256:" + hashlib.sha256(value.strip().lower().encode()).hexdigest().upper()
    for settings in (with_key(value), with_key("os.environ/KEY"), with_key(hashed), with_key("good-value", value)):
        with pytest.raises(ConfigurationError, match="'master' is a published example") as caught:
            check_exposure(settings, "0.0.0.0", {"KEY": value})
        assert value not in str(caught.value).replace("'master' is a published", "")


@pytest.mark.parametrize("environment", [{}, {"KEY": ""}])
def test_a_key_whose_variable_is_empty_is_none(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="no key is configured"):
        check_exposure(with_key("os.environ/KEY"), "0.0.0.0", environment)
