"""Keys: the master key and the named ones, and that a gateway never starts open by mistake."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fakes.config_files import MODEL, ConfigFiles

from pipeline.settings import Key, Secret


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def master(value: str) -> str:
    return MODEL + f"general_settings:\n  master_key: {value}\n"


def named(keys: str) -> str:
    return MODEL + f"promptmill_settings:\n  keys: {keys}\n"


class TestTheMasterKey:
    def test_comes_from_the_file(self, files):
        assert files.load(master("sk-1"), {"PROMPTMILL_MASTER_KEY": "other"}).keys == (
            Key(name="master", values=(Secret("sk-1"),), master=True),
        )

    @pytest.mark.parametrize(
        ("environment", "name"),
        [
            ({"PROMPTMILL_MASTER_KEY": "a", "LITELLM_MASTER_KEY": "b"}, "PROMPTMILL_MASTER_KEY"),
            ({"PROMPTMILL_MASTER_KEY": "", "LITELLM_MASTER_KEY": "b"}, "LITELLM_MASTER_KEY"),
        ],
    )
    def test_else_comes_from_the_environment(self, files, environment, name):
        (key,) = files.load(MODEL, environment).keys
        assert (key.values, key.master) == ((Secret(f"os.environ/{name}"),), True)

    def test_is_none_when_nothing_names_one(self, files):
        assert files.load(MODEL, {"LITELLM_MASTER_KEY": ""}).keys == ()

    def test_may_be_two_while_it_is_rotated(self, files):
        (key,) = files.load(master("[sk-new, os.environ/OLD]"), {"OLD": "x"}).keys
        assert key.values == (Secret("sk-new"), Secret("os.environ/OLD"))

    @pytest.mark.parametrize("environment", [{}, {"KEY": ""}])
    def test_of_an_unset_variable_ends_the_start(self, files, environment):
        (error,) = files.errors(master("os.environ/KEY"), environment)
        assert error.startswith(
            "config.yaml:5: general_settings.master_key: the variable KEY is not set, which would leave"
        )

    def test_may_come_from_a_variable_the_file_sets(self, files):
        text = master("os.environ/KEY") + "environment_variables: {KEY: sk-x}\n"
        assert files.load(text).keys[0].values == (Secret("os.environ/KEY"),)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("", "no value; give one, or two while it is rotated, or take the line out"),
            ("[]", "0 values; give one, or two while it is rotated"),
            ("[sk-secret1, sk-secret2, sk-secret3]", "3 values; give one, or two while it is rotated"),
            ("[null, sk-secret]", "no value; give one, or two while it is rotated, or take the line out"),
            ("{sk-secret: 1}", "the value is not a text; give one, in quotes"),
            ("${SECRET}", "the value looks like a variable, and would be used as it is; write os.environ/NAME"),
            ("sha256:secret", "not a SHA-256 hash; give `sha256:` and 64 hexadecimal digits"),
        ],
    )
    def test_of_a_wrong_shape_is_an_error_that_does_not_show_it(self, files, value, message):
        (error,) = files.errors(master(value))
        assert error == f"config.yaml:5: general_settings.master_key: {message}"


class TestNamedKeys:
    def test_come_in_all_their_forms(self, files):
        digest = hashlib.sha256(b"hidden").hexdigest()
        text = (
            MODEL
            + f"""\
promptmill_settings:
  keys:
    plain: sk-plain
    two: [sk-a, os.environ/B]
    full: {{key: "sha256:{digest.upper()}", models: ["gpt-*", gpt-4]}}
    rotated: {{key: [sk-c, sk-d], models: gpt-4}}
"""
        )
        settings = files.load(text, {"B": "b"})
        assert settings.keys == (
            Key(name="plain", values=(Secret("sk-plain"),)),
            Key(name="two", values=(Secret("sk-a"), Secret("os.environ/B"))),
            Key(name="full", values=(Secret(f"sha256:{digest}"),), models=("gpt-*", "gpt-4")),
            Key(name="rotated", values=(Secret("sk-c"), Secret("sk-d")), models=("gpt-4",)),
        )
        assert settings.notices == ()

    @pytest.mark.parametrize("name", ["master", "-a", ".a", "a b", "a" * 65, "ä", '""'])
    def test_need_a_name_that_can_stand_in_a_log(self, files, name):
        (error,) = files.errors(named(f"{{{name}: sk-x}}"))
        assert "cannot be a key's name; use up to 64 letters, digits and `._-`, and not 'master'" in error

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("sk-secret", "sk-secret"),
            ("sk-secret", "sha256:" + hashlib.sha256(b"sk-secret").hexdigest()),
            ("os.environ/K", "os.environ/K"),
        ],
    )
    def test_must_not_share_a_value(self, files, one, other):
        text = MODEL + f"promptmill_settings:\n  keys:\n    a: {one}\n    b: [sk-x, '{other}']\n"
        (error,) = files.errors(text, {"K": "k"})
        assert error == "config.yaml:7: promptmill_settings.keys.b: has the same value as 'a'; give each name its own"

    def test_must_not_have_the_master_key(self, files):
        (error,) = files.errors(master("sk-x") + "promptmill_settings: {keys: {a: sk-x}}\n")
        assert (
            error == "config.yaml:6: promptmill_settings.keys.a: has the same value as 'master'; give each name its own"
        )

    def test_may_hold_the_same_value_twice_under_one_name(self, files):
        assert len(files.load(named("{a: [sk-x, sk-x]}")).keys) == 1

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ("{a: {models: [gpt-4]}}", "promptmill_settings.keys.a.key: no value"),
            ("{a: null}", "promptmill_settings.keys.a: no value"),
            ("{a: []}", "promptmill_settings.keys.a: 0 values"),
            (
                "{a: {key: k, models: []}}",
                "promptmill_settings.keys.a.models: lists no model; name some, or take it out",
            ),
            ("{a: {key: k, models: [[x]]}}", "promptmill_settings.keys.a.models: a list is not a text"),
            ("[sk-x]", "promptmill_settings.keys: a list is not a mapping"),
        ],
    )
    def test_of_a_wrong_shape_are_errors(self, files, keys, message):
        assert any(f"config.yaml:5: {message}" in error for error in files.errors(named(keys)))

    def test_that_list_unknown_models_or_keys_are_told(self, files):
        assert files.notices(named("{a: {key: k, models: [gpt-5, zz], model: x}}")) == [
            "5: promptmill_settings.keys.a.models: no model 'gpt-5'; there is gpt-4",
            "5: promptmill_settings.keys.a.models: no model 'zz'; there is gpt-4",
            "5: promptmill_settings.keys.a.model: unknown key; did you mean 'models'?",
        ]

    def test_that_list_models_where_there_are_none_are_told(self, files):
        text = "promptmill_settings: {keys: {a: {key: k, models: [m]}}}\n"
        assert files.notices(text)[-1] == "1: promptmill_settings.keys.a.models: no model 'm'"

    def test_of_an_unset_variable_cannot_be_used_and_it_is_told(self, files):
        settings = files.load(named("{a: os.environ/K}"))
        assert settings.keys[0].values[0].reveal({}) is None
        assert "the variable K is not set; nobody can use this key" in settings.notices[0].message


def test_no_key_is_in_any_message_or_representation(files):
    text = master("sk-secret-1") + "promptmill_settings: {keys: {a: sk-secret-2}, redis_url: 'redis://:secret-3@h'}\n"
    settings = files.load(text)
    assert "secret" not in repr(settings.keys) + repr(settings.notices) + repr(settings.transport)
