"""Limits: where each is read, in which units, and which go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.config_files import MODEL, ConfigFiles

from pipeline.settings import (
    BatchSettings,
    DispatchSettings,
    IngressSettings,
    PromptSettings,
    RouterSettings,
    Secret,
    TransportSettings,
)


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def ours(line: str) -> str:
    return MODEL + f"promptmill_settings:\n  {line}\n"


def test_every_setting_of_ours_has_its_field(files):
    text = (
        MODEL
        + """\
promptmill_settings:
  redis_url: redis://localhost:6379/0
  request_timeout: 2m
  max_request_timeout: 1h
  max_body_bytes: 64MB
  max_buffered_bytes: 1GiB
  max_backlog: 5000
  max_backlog_bytes: 1.5GB
  max_requests: "900"
  drain: 0
  prompt_timeout: 500ms
  prompt_slots: 8
  prompt_env: [LANGFUSE_KEY]
  accept_ignored: custom_auth
  dispatch_slots: 100
  max_response_bytes: 1000
  connect_timeout: 2.5
  lease: 1
  grace: 1d
  batch_reserve: 0
  dead_letter_bodies: true
  maxmemory: os.environ/MEMORY
  persistence: always
"""
    )
    settings = files.load(text, {"MEMORY": "512 MiB"})
    assert settings.notices == ()
    assert settings.ingress == IngressSettings(
        request_timeout=120.0,
        max_request_timeout=3600.0,
        max_body_bytes=64_000_000,
        max_buffered_bytes=2**30,
        max_backlog=5000,
        max_backlog_bytes=1_500_000_000,
        max_requests=900,
        drain=0.0,
    )
    assert settings.prompts == PromptSettings(
        timeout=0.5, slots=8, environment=("LANGFUSE_KEY",), accept_ignored=("custom_auth",)
    )
    assert settings.dispatch == DispatchSettings(slots=100, max_response_bytes=1000, connect_timeout=2.5)
    assert settings.transport == TransportSettings(
        url=Secret("redis://localhost:6379/0"),
        lease=1.0,
        grace=86400.0,
        batch_reserve=0.0,
        dead_letter_bodies=True,
        maxmemory=512 * 2**20,
        persistence="always",
    )


def test_limits_of_batches_may_be_openais_and_what_is_given_goes_before_them(files):
    openai = files.load(ours("batch_limits: openai")).batches
    assert (openai.max_batch_lines, openai.max_batch_bytes) == (50_000, 209_715_200)
    assert (openai.max_embedding_inputs, openai.max_batches_per_hour) == (50_000, 2000)
    own = files.load(ours("batch_limits: openai\n  max_batch_lines: 7")).batches
    assert (own.max_batch_lines, own.max_batches_per_hour) == (7, 2000)
    assert files.load(ours("max_requests: 1")).batches == BatchSettings()


@pytest.mark.parametrize("spelling", ["true", "'True'", "'1'", "1", "os.environ/YES"])
def test_a_flag_may_come_from_a_variable(files, spelling):
    assert files.load(ours(f"dead_letter_bodies: {spelling}"), {"YES": "true"}).transport.dead_letter_bodies is True
    assert files.load(ours("dead_letter_bodies: 'false'")).transport.dead_letter_bodies is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "max_body_bytes: 64 parsecs",
            "max_body_bytes: '64 parsecs' is not a size; give bytes as a number, or a text like",
        ),
        ("max_body_bytes: 0", "max_body_bytes: '0' is too small; give at least 1"),
        ("max_body_bytes: [1]", "max_body_bytes: a list is not a size"),
        ("max_backlog: 0", "max_backlog: '0' is too small; give at least 1"),
        ("max_requests: 1.5", "max_requests: '1.5' is not a whole number"),
        ("max_requests: many", "max_requests: 'many' is not a number"),
        ("lease: 500ms", "lease: '500ms' is too small; give at least 1"),
        ("grace: 0", "grace: '0' is too small; give at least 1"),
        ("drain: -1", "drain: '-1' is too small; give at least 0"),
        ("batch_reserve: 1", "batch_reserve: '1' is too large; give a share below 1"),
        ("dead_letter_bodies: maybe", "dead_letter_bodies: 'maybe' is neither true nor false; give one of the two"),
        ("persistence: never", "persistence: 'never' is not known; give one of always, everysec, no"),
        ("batch_limits: azure", "batch_limits: 'azure' is not known; give one of openai"),
        ("prompt_env: {A: 1}", "prompt_env: a mapping is not a text"),
        (
            "request_timeout: 2h",
            "request_timeout: request_timeout is 7200 and above max_request_timeout, 3600; lower it",
        ),
        ("prompt_timeout: 2h", "prompt_timeout: prompt_timeout is 7200 and above max_request_timeout, 3600; lower it"),
        ("max_body_bytes: 1GB", "max_body_bytes: max_body_bytes is 1e+09 and above max_buffered_bytes"),
        ("redis_url: localhost:6379", "redis_url: not a Redis address; give one that starts with redis://, rediss://"),
        (
            "redis_url: os.environ/R",
            "redis_url: the variable R is not set; set it, or take the line out for an embedded",
        ),
        ("redis_url: [secret]", "redis_url: the value is not a text"),
        ("redis_url: 'http://:secret@h'", "redis_url: not a Redis address"),
    ],
)
def test_wrong_values_are_errors_at_their_line(files, line, message):
    errors = files.errors(ours(line))
    assert errors[0].startswith(f"config.yaml:5: promptmill_settings.{message}")
    assert "secret" not in errors[0]


def test_an_unknown_setting_of_ours_is_told(files):
    assert files.notices(ours("dispach_slots: 5")) == [
        "5: promptmill_settings.dispach_slots: unknown key; did you mean 'dispatch_slots'?"
    ]


def test_yaml_reads_no_as_false_so_it_is_quoted_in_messages(files):
    (error,) = files.errors(ours("persistence: no"))
    assert error == "config.yaml:5: promptmill_settings.persistence: 'no' is not a text; give one, in quotes"
    assert files.load(ours("persistence: 'no'")).transport.persistence == "no"


class TestRedis:
    def test_is_the_environments_when_the_file_names_none(self, files):
        assert files.load(MODEL, {"REDIS_URL": "redis://h"}).transport.url == Secret("os.environ/REDIS_URL")
        assert files.load(MODEL, {"REDIS_URL": ""}).transport.url is None

    @pytest.mark.parametrize("url", ["os.environ/R", "rediss://h:1/2", "unix:///run/redis.sock"])
    def test_is_the_files_where_it_names_one(self, files, url):
        environment = {"REDIS_URL": "redis://h", "R": "redis://other"}
        assert files.load(ours(f"redis_url: {url}"), environment).transport.url == Secret(url)


class TestRouting:
    def test_is_read_from_router_settings(self, files):
        text = MODEL + (
            "router_settings: {num_retries: 0, timeout: 20, allowed_fails: 1, cooldown_time: 30, retry_after: 2, "
            "routing_strategy: simple-shuffle, model_group_alias: {fast: gpt-4, slow: {model: gpt-4, hidden: false}}}\n"
        )
        settings = files.load(text)
        assert settings.notices == ()
        assert settings.router == RouterSettings(
            retries=0,
            timeout=20.0,
            allowed_fails=1,
            cooldown=30.0,
            retry_after=2.0,
            aliases={"fast": "gpt-4", "slow": "gpt-4"},
        )

    def test_else_from_litellm_settings(self, files):
        text = MODEL + "litellm_settings: {num_retries: 5, request_timeout: 10, allowed_fails: 9, cooldown_time: 1}\n"
        router = files.load(text).router
        assert (router.retries, router.timeout, router.allowed_fails, router.cooldown) == (5, 10.0, 9, 1.0)
        router = files.load(text + "router_settings: {num_retries: 1, timeout: 2}\n").router
        assert (router.retries, router.timeout, router.allowed_fails) == (1, 2.0, 9)

    def test_by_another_strategy_is_told(self, files):
        assert files.notices(MODEL + "router_settings: {routing_strategy: least-busy}\n") == [
            "4: router_settings.routing_strategy: 'least-busy' has no effect here yet; deployments are chosen by "
            "simple-shuffle"
        ]

    def test_to_an_unknown_model_by_an_alias_is_an_error(self, files):
        text = (
            MODEL + "router_settings:\n  model_group_alias:\n    a: gpt-5\n    b: a\n    c: {hidden: true}\n    d: 1\n"
        )
        assert files.errors(text) == [
            "config.yaml:6: router_settings.model_group_alias.a: no model 'gpt-5'; there is gpt-4",
            "config.yaml:7: router_settings.model_group_alias.b: no model 'a'; there is gpt-4",
            "config.yaml:8: router_settings.model_group_alias.c.model: missing; every entry needs it",
            "config.yaml:9: router_settings.model_group_alias.d: no model '1'; there is gpt-4",
        ]
        (error,) = files.errors("router_settings: {model_group_alias: {a: b}}\n")
        assert error.endswith("no model 'b'; add it to `model_list`")

    def test_by_an_alias_may_hide_a_model_or_lead_to_a_wildcard(self, files):
        text = MODEL + "  - {model_name: 'x/*', litellm_params: {model: 'openai/*'}}\n"
        text += "router_settings: {model_group_alias: {a: x/y, gpt-4: x/z, h: {model: gpt-4, hidden: true}}}\n"
        assert files.notices(text) == [
            "5: router_settings.model_group_alias.h.hidden: has no effect here yet; the alias is listed",
            "5: router_settings.model_group_alias.gpt-4: hides the model of the same name; requests for it go to 'x/z'",
        ]


class TestDeadlines:
    @pytest.mark.parametrize(
        ("litellm", "own", "expected"),
        [
            ("10", "", (600, 3600)),
            ("1800", "", (1800, 3600)),
            ("6000", "", (6000, 6000)),
            ("6000", "max_request_timeout: 1000", (1000, 1000)),
            ("6000", "request_timeout: 60", (60, 3600)),
            ("10", "max_request_timeout: 300, prompt_timeout: 5", (300, 300)),
        ],
    )
    def test_make_room_for_one_call_unless_they_are_given(self, files, litellm, own, expected):
        text = MODEL + f"litellm_settings: {{request_timeout: {litellm}}}\npromptmill_settings: {{{own}}}\n"
        ingress = files.load(text).ingress
        assert (ingress.request_timeout, ingress.max_request_timeout) == expected

    def test_may_not_be_longer_than_the_longest(self, files):
        text = MODEL + "promptmill_settings: {request_timeout: 2, max_request_timeout: 1, prompt_timeout: 1}\n"
        assert len(files.errors(text)) == 1


class TestSizes:
    def test_are_litellms_in_binary_megabytes(self, files):
        settings = files.load(MODEL + "general_settings: {max_request_size_mb: 2, max_response_size_mb: 0.5}\n")
        assert settings.ingress.max_body_bytes == 2 * 2**20
        assert settings.dispatch.max_response_bytes == 2**19
        assert settings.notices == ()

    def test_are_ours_where_both_are_given(self, files):
        text = ours("{max_body_bytes: 5, max_response_bytes: 6}".strip("{}").replace(", ", "\n  "))
        settings = files.load(text + "general_settings: {max_request_size_mb: 2, max_response_size_mb: 0.5}\n")
        assert (settings.ingress.max_body_bytes, settings.dispatch.max_response_bytes) == (5, 6)

    def test_of_one_body_give_way_to_what_all_may_hold(self, files):
        assert files.load(ours("max_buffered_bytes: 1MB")).ingress.max_body_bytes == 1_000_000
