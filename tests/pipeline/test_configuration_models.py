"""`model_list`: what becomes of each parameter, how entries get their ids, and where groups must agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.config_files import ConfigFiles

from pipeline.settings import Deployment, Secret, Settings, for_batches


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def entries(*params: str, name: str = "gpt-4") -> str:
    lines = [f"  - model_name: {name}\n    litellm_params: {{{one}}}\n" for one in params]
    return "model_list:\n" + "".join(lines)


def only(files: ConfigFiles, params: str, environment: dict[str, str] | None = None) -> Deployment:
    return files.load(entries(params), environment).deployments[0]


def test_every_parameter_we_know_has_its_field(files):
    text = """\
    model_list:
      - model_name: "azure/*"
        model_info: {id: my-id, base_model: anything}
        litellm_params:
          model: azure/*
          api_base: https://east.example/openai
          api_key: sk-literal
          api_version: 2024-02-01
          organization: org-1
          extra_headers: {X-Team: red, X-Number: 7}
          timeout: 30s
          stream_timeout: "1.5"
          num_retries: 4
          weight: 0.5
          rpm: 60
          tpm: "100000"
          mock_response: "Hello\\nworld"
          prompt_id: 1234
          prompt_version: 7
          prompt_label: production
          prompt_variables: {tone: os.environ/TONE, list: [os.environ/TONE, 1]}
          temperature: 0.2
          stop: [a, b]
          some_new_field: {x: 1}
          extra_body: {chat_template_kwargs: {thinking: false}, temperature: 1}
    """
    settings = files.load(text, {"TONE": "warm"})
    assert settings.notices == ()
    assert settings.deployments == (
        Deployment(
            id="my-id",
            model_name="azure/*",
            model="azure/*",
            api_base="https://east.example/openai",
            api_key=Secret("sk-literal"),
            api_version="2024-02-01",
            organization="org-1",
            headers={"X-Team": "red", "X-Number": "7"},
            timeout=30.0,
            stream_timeout=1.5,
            retries=4,
            weight=0.5,
            rpm=60,
            tpm=100000,
            mock_response="Hello\nworld",
            prompt_id="1234",
            prompt_version=7,
            prompt_label="production",
            prompt_variables={"tone": "warm", "list": ["warm", 1]},
            defaults={
                "temperature": 0.2,
                "stop": ["a", "b"],
                "some_new_field": {"x": 1},
                "chat_template_kwargs": {"thinking": False},
            },
            line=2,
        ),
    )


@pytest.mark.parametrize(
    ("params", "model"),
    [
        ("model: gpt-4", "openai/gpt-4"),
        ("model: anthropic/claude", "anthropic/claude"),
        ("model: gpt-4, custom_llm_provider: azure", "azure/gpt-4"),
        ("model: azure/gpt-4, custom_llm_provider: azure", "azure/gpt-4"),
        ("model: meta-llama/llama, custom_llm_provider: groq", "groq/meta-llama/llama"),
        ("model: os.environ/MODEL", "groq/llama"),
    ],
)
def test_a_model_gets_its_provider_in_front(files, params, model):
    assert only(files, params, {"MODEL": "groq/llama"}).model == model


def test_a_bare_wildcard_stays_as_it_is(files):
    assert files.load(entries("model: '*'", name="'*'")).deployments[0].model == "*"


@pytest.mark.parametrize(("name", "model"), [("gpt-4", "openai/*"), ("'*'", "'*'"), ("a*b*", "openai/*")])
def test_a_wildcard_in_the_model_needs_one_in_the_name(files, name, model):
    text = entries(f"model: {model}", name=name)
    if name == "'*'":
        assert files.load(text).deployments
        return
    (error,) = files.errors(text)
    assert "config.yaml:2: model_list[0].model_name: " in error
    assert "must hold exactly one `*`" in error


def test_either_name_of_a_parameter_will_do_and_the_first_counts(files):
    assert only(files, "model: m, base_url: http://a.example").api_base == "http://a.example"
    assert only(files, "model: m, max_retries: 0").retries == 0
    text = entries("model: m, num_retries: 1, max_retries: 2")
    assert files.load(text).deployments[0].retries == 1
    assert files.notices(text) == [
        "3: model_list[0].litellm_params.max_retries: `num_retries` is there too, and counts"
    ]


@pytest.mark.parametrize(
    "param",
    [
        "drop_params: true",
        "tags: [a]",
        "input_cost_per_token: 0.1",
        "use_in_pass_through: true",
        "merge_reasoning_content_in_choices: true",
        "aws_secret_access_key: sk-secret",
        "some_api_key: sk-secret",
        "azure_ad_token: sk-secret",
        "vertex_credentials: sk-secret",
        "stream: true",
        "messages: []",
    ],
)
def test_what_steers_litellm_or_looks_like_a_credential_never_becomes_a_body_field(files, param):
    text = entries(f"model: m, {param}")
    assert files.load(text).deployments[0].defaults == {}
    assert files.notices(text) == [f"3: model_list[0].litellm_params.{param.split(':')[0]}: has no effect here yet"]


@pytest.mark.parametrize(
    "param", ["max_tokens: 5", "max_completion_tokens: 5", "prompt_cache_key: k", "logprobs: true"]
)
def test_body_fields_that_look_a_little_like_credentials_are_defaults(files, param):
    assert list(only(files, f"model: m, {param}").defaults) == [param.split(":")[0]]


@pytest.mark.parametrize("field", ["stream", "api_base", "api_key", "model", "prompt_id"])
def test_the_extra_body_steers_nothing(files, field):
    text = entries(f"model: m, extra_body: {{{field}: secret, top_k: 5}}")
    assert files.load(text).deployments[0].defaults == {"top_k": 5}
    (notice,) = files.notices(text)
    assert f"litellm_params.extra_body: '{field}' in it steers the gateway" in notice


def test_what_holds_for_batches_alone_is_a_timeout_and_body_fields(files):
    found = only(files, "model: m, timeout: 60, user: u, batch_params: {service_tier: flex, timeout: 15m, user: b}")
    assert (found.timeout, found.batch_timeout) == (60, 900)
    assert (found.defaults, found.batch_defaults) == ({"user": "u"}, {"service_tier": "flex", "user": "b"})
    (for_a_batch,) = for_batches(Settings(deployments=(found,))).deployments
    assert for_a_batch.timeout == 900
    assert for_a_batch.defaults == {"user": "b", "service_tier": "flex"}
    (as_ever,) = for_batches(Settings(deployments=(only(files, "model: m, timeout: 60"),))).deployments
    assert (as_ever.timeout, as_ever.defaults) == (60, {})


@pytest.mark.parametrize("field", ["api_base", "model", "rpm", "extra_body: {api_key: k}, x"])
def test_nothing_of_it_steers_the_gateway(files, field):
    text = entries(f"model: m, batch_params: {{{field}: 5}}")
    assert not {"api_base", "model", "rpm", "api_key"} & set(files.load(text).deployments[0].batch_defaults)
    (notice,) = files.notices(text)
    assert "steers the gateway and is left out" in notice


def test_a_model_level_budget_ends_the_start(files):
    (error,) = files.errors(entries("model: m, max_budget: 5"))
    assert error.startswith("config.yaml:3: model_list[0].litellm_params.max_budget: max_budget restricts access")


def test_a_key_is_not_resolved_and_not_required(files):
    assert only(files, "model: m, api_key: os.environ/K", {"K": "sk-value"}).api_key == Secret("os.environ/K")
    assert only(files, "model: m").api_key is None
    assert only(files, "model: m, api_key: null").api_key is None


@pytest.mark.parametrize("key", ["${SK_SECRET}", "$SK_SECRET", "os.environ.SK_SECRET", "os.environ/", "%SK_SECRET%"])
def test_a_key_that_looks_like_a_variable_is_refused_without_showing_it(files, key):
    (error,) = files.errors(entries(f"model: m, api_key: '{key}'"))
    assert "litellm_params.api_key: the value looks like a variable" in error
    assert "SK_SECRET" not in error


@pytest.mark.parametrize(
    "key", ["[sk-secret]", "{sk-secret: 1}", "true", "'sk secret'", "'sk-sécret'", "''", '"sk-secret\\n"']
)
def test_a_key_that_no_header_could_carry_is_refused_without_showing_it(files, key):
    (error,) = files.errors(entries(f"model: m, api_key: {key}"))
    assert error.startswith("config.yaml:3: model_list[0].litellm_params.api_key: the value ")
    assert "cret" not in error


def test_an_unset_variable_of_a_value_is_told_and_counts_as_absent(files):
    text = entries("model: m, timeout: os.environ/T, organization: os.environ/ORG, temperature: os.environ/TEMP")
    (deployment,) = files.load(text).deployments
    assert (deployment.timeout, deployment.organization, deployment.defaults, deployment.unset) == (None, None, {}, ())
    assert "3: model_list[0].litellm_params.timeout: the variable T is not set; it counts as absent" in files.notices(
        text
    )


@pytest.mark.parametrize("param", ["api_base", "base_url", "custom_llm_provider", "mock_response"])
def test_an_unset_variable_that_says_where_calls_go_is_kept_with_the_deployment(files, param):
    assert only(files, f"model: m, {param}: os.environ/WHERE").unset == ("WHERE",)
    assert only(files, f"model: m, {param}: os.environ/WHERE", {"WHERE": "http://a.example"}).unset == ()


def test_an_unset_header_is_left_out(files):
    deployment = only(files, "model: m, extra_headers: {A: os.environ/UNSET, B: b}")
    assert deployment.headers == {"B": "b"}


def test_an_unset_variable_of_a_required_value_is_an_error(files):
    assert files.errors(entries("model: os.environ/MODEL", name="os.environ/NAME")) == [
        "config.yaml:2: model_list[0].model_name: the variable NAME is not set; set it, or write the value here",
        "config.yaml:3: model_list[0].litellm_params.model: the variable MODEL is not set; set it, or write the value "
        "here",
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("model: m, api_base: host:8000", "api_base: 'host:8000' is not a URL; give one that starts with http:// or"),
        ("model: m, api_base: 'http://a.example:x'", "api_base: 'http://a.example:x' is not a URL"),
        ("model: m, api_base: 'ftp://u:pass@h'", "api_base: 'ftp://***@h' is not a URL"),
        ("model: [m]", "model: a list is not a text"),
        ("model: true", "model: 'true' is not a text"),
        ("model: ' '", "model: ' ' is empty"),
        (
            "model: m, timeout: soon",
            "timeout: 'soon' is not a duration; give seconds as a number, or a text like '30s'",
        ),
        ("model: m, timeout: 5 parsecs", "timeout: '5 parsecs' is not a duration"),
        ("model: m, timeout: .inf", "timeout: '.inf' is not a duration"),
        ("model: m, timeout: true", "timeout: 'true' is not a duration"),
        ("model: m, timeout: 0", "timeout: '0' is too small; give more than 0"),
        ("model: m, rpm: 0", "rpm: '0' is too small; give at least 1"),
        ("model: m, rpm: 1.5", "rpm: '1.5' is not a whole number"),
        ("model: m, weight: -1", "weight: '-1' is too small; give at least 0"),
        ("model: m, weight: true", "weight: 'true' is not a number"),
        ("model: m, mock_response: {a: 1}", "mock_response: a mapping is not a text"),
        ("model: m, extra_headers: [a]", "extra_headers: not a mapping"),
        ("model: m, extra_headers: {X: [sk-secret]}", "extra_headers: the value of 'X' is not one line of ASCII text"),
        ("model: m, extra_headers: {X: sécret}", "extra_headers: the value of 'X' is not one line of ASCII text"),
        ("model: m, extra_headers: {X Y: secret}", "extra_headers: 'X Y' is not a header's name"),
        ('model: m, extra_headers: {X: "sk-secret\\r\\nY: 1"}', "extra_headers: the value of 'X' is not one line"),
        ("model: m, prompt_id: p, prompt_version: [1]", "prompt_version: a list is not a text"),
        ("model: m, prompt_id: p, prompt_variables: text", "prompt_variables: not a mapping"),
        (f"model: '{'m' * 80}\\n', rpm: x", "rpm: 'x' is not a number"),
    ],
)
def test_wrong_values_are_errors_at_their_line_with_the_remedy(files, params, message):
    (error,) = files.errors(entries(params))
    assert error.startswith(f"config.yaml:3: model_list[0].litellm_params.{message}")
    assert "cret" not in error


def test_long_values_are_shortened_in_messages(files):
    (error,) = files.errors(entries(f"model: m, rpm: {'x' * 200}"))
    assert f"'{'x' * 57}...'" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_list: {a: 1}\n", "config.yaml:1: model_list: a mapping is not a list; start each entry with `- `"),
        ("model_list:\n  - gpt-4\n", "config.yaml:2: model_list[0]: 'gpt-4' is not a mapping"),
        ("model_list:\n  - model_name: a\n", "config.yaml:2: model_list[0].litellm_params: missing; give at least"),
        (
            "model_list:\n  - model_name: a\n    litellm_params: m\n",
            "config.yaml:3: model_list[0].litellm_params: 'm' is not a mapping",
        ),
        (
            "model_list:\n  - model_name: a\n    litellm_params: {model: m}\n    model_info: {id: 'a b'}\n",
            "config.yaml:4: model_list[0].model_info.id: 'a b' cannot be an id",
        ),
        ("model_list:\n  - litellm_params: {model: m}\n", "config.yaml:2: model_list[0].model_name: missing"),
        (
            'model_list:\n  - model_name: "a\\nb"\n    litellm_params: {model: m}\n',
            "config.yaml:2: model_list[0].model_name:",
        ),
    ],
)
def test_entries_of_a_wrong_shape_are_errors(files, text, message):
    assert any(error.startswith(message) for error in files.errors(text))


def test_an_unknown_key_of_an_entry_is_told(files):
    text = entries("model: m") + "    model_inf: {id: a}\n"
    assert files.notices(text) == ["4: model_list[0].model_inf: unknown key; did you mean 'model_info'?"]


class TestIds:
    def test_are_short_and_stable_and_differ_between_equal_entries(self, files):
        text = entries("model: m, api_key: sk-a", "model: m, api_key: sk-a")
        first, second = (d.id for d in files.load(text).deployments)
        assert len(first) == 12
        assert int(first, 16) >= 0
        assert first != second
        assert (first, second) == tuple(d.id for d in files.load("# a line above\n" + text).deployments)

    def test_say_nothing_about_a_literal_key_but_tell_variables_apart(self, files):
        assert only(files, "model: m, api_key: sk-a").id == only(files, "model: m, api_key: sk-b").id
        assert only(files, "model: m, api_key: os.environ/A").id != only(files, "model: m, api_key: os.environ/B").id

    def test_depend_on_the_model_and_the_base(self, files):
        ids = {only(files, p).id for p in ("model: m", "model: n", "model: m, api_base: 'http://a.example'")}
        assert len(ids) == 3

    def test_of_other_entries_do_not_move_one(self, files):
        assert files.load(entries("model: x", "model: m")).deployments[1].id == only(files, "model: m").id

    def test_must_differ(self, files):
        text = "model_list:\n" + 2 * "  - model_name: a\n    litellm_params: {model: m}\n    model_info: {id: same}\n"
        (error,) = files.errors(text)
        assert error.startswith("config.yaml:7: model_list[1].model_info.id: 'same' is the id of the entry at ")
        assert error.endswith("config.yaml:2; ids must differ")


class TestPromptsOfAGroup:
    @pytest.mark.parametrize(
        ("field", "one", "other"),
        [
            ("prompt_id", "prompt_id: a", "prompt_id: b"),
            ("prompt_version", "prompt_id: a, prompt_version: 1", "prompt_id: a, prompt_version: 2"),
            ("prompt_label", "prompt_id: a, prompt_label: x", "prompt_id: a"),
            ("prompt_variables", "prompt_id: a", "prompt_id: a, prompt_variables: {x: 1}"),
        ],
    )
    def test_must_be_the_same_in_all_its_deployments(self, files, field, one, other):
        (error,) = files.errors(entries(f"model: m, {one}", f"model: n, {other}"))
        assert error.startswith(
            f"config.yaml:5: model_list[1].litellm_params.{field}: differs from the entry of the same"
        )
        assert "config.yaml:3" in error

    def test_may_differ_between_groups(self, files):
        text = entries("model: m, prompt_id: a") + entries("model: m, prompt_id: b", name="other").removeprefix(
            "model_list:\n"
        )
        assert [d.prompt_id for d in files.load(text).deployments] == ["a", "b"]

    def test_need_an_id(self, files):
        assert files.notices(entries("model: m, prompt_label: x")) == [
            "3: model_list[0].litellm_params.prompt_id: missing; the prompt's version, label and variables have "
            "no effect without it"
        ]


def test_a_limit_nobody_enforces_is_told(files):
    text = "model_list:\n  - model_name: m\n    litellm_params: {model: openai/m, max_parallel_requests: 8}\n"
    (notice,) = files.load(text).notices
    assert "max_parallel_requests" in notice.message
    assert "has no effect here yet" in notice.message


def test_an_entry_that_never_gets_a_call_is_told(files):
    entry = "  - model_name: m\n    litellm_params: {model: openai/%s%s}\n"
    text = "model_list:\n" + entry % ("a", "") + entry % ("b", ", weight: 3")
    (notice,) = files.load(text).notices
    assert "gets no calls" in notice.message
    assert files.load("model_list:\n" + entry % ("a", "") + entry % ("b", "")).notices == ()
