"""Settings: secrets stay hidden, defaults stay within their own limits."""

from __future__ import annotations

import msgspec
import pytest

from pipeline.settings import IngressSettings, PromptSettings, Secret, Settings, TransportSettings


def test_a_secret_that_is_written_down_is_its_own_value_and_hidden():
    secret = Secret("sk-value")
    assert secret.variable is None
    assert secret.reveal({"sk-value": "other"}) == "sk-value"
    assert repr(secret) == str(secret) == f"{secret}" == "Secret(***)"


def test_a_secret_in_a_variable_is_read_when_it_is_needed_and_shows_the_variable():
    secret = Secret("os.environ/KEY")
    assert secret.variable == "KEY"
    assert secret.reveal({"KEY": "value"}) == "value"
    assert repr(secret) == "Secret(os.environ/KEY)"


@pytest.mark.parametrize("environment", [{}, {"KEY": ""}])
def test_a_secret_in_an_unset_or_empty_variable_is_none(environment):
    assert Secret("os.environ/KEY").reveal(environment) is None


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        Settings().digest = "other"


def test_settings_encode_for_a_child_process_and_come_back():
    settings = Settings(transport=TransportSettings(url=Secret("redis://h")))
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


def test_the_defaults_keep_the_rules_configuration_checks():
    ingress, transport = IngressSettings(), TransportSettings()
    assert ingress.request_timeout <= ingress.max_request_timeout
    assert PromptSettings().timeout <= ingress.max_request_timeout
    assert ingress.max_body_bytes <= ingress.max_buffered_bytes
    assert transport.lease >= 1
    assert transport.grace >= 1
