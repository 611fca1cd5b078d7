"""The configuration as a whole: where it is found, what is told about it, and what it is equal to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fakes.config_files import MODEL, ConfigFiles

from pipeline.configuration import load
from pipeline.errors import ConfigurationError
from pipeline.settings import IngressSettings, RouterSettings, Secret, Settings

SEED = """\
model_list:
  - model_name: gpt-4
    litellm_params:
      model: openai/gpt-4
      api_key: os.environ/OPENAI_API_KEY

litellm_settings:
  callbacks: custom_prompt.prompt_management  # sets litellm.callbacks = [prompt_management]
"""


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def test_the_published_example_loads_unchanged_while_its_key_is_unset(files):
    files.write("prompt_management = object()\n", "custom_prompt.py")
    settings = files.load(SEED)
    (deployment,) = settings.deployments
    assert (deployment.model_name, deployment.model, deployment.line) == ("gpt-4", "openai/gpt-4", 2)
    assert deployment.api_key == Secret("os.environ/OPENAI_API_KEY")
    (callback,) = settings.callbacks
    assert (callback.path, Path(callback.file).name, callback.line) == (
        "custom_prompt.prompt_management",
        "config.yaml",
        8,
    )
    assert settings.keys == ()
    assert settings.notices == ()
    assert settings.router == RouterSettings()
    assert settings.ingress == IngressSettings()


def test_the_path_may_come_from_the_environment(files):
    path = files.write(MODEL)
    settings = load(None, {"PROMPTMILL_CONFIG": str(path)})
    assert settings.source == str(path)
    assert settings.directory == str(path.parent)


def test_without_a_path_the_error_says_how_to_give_one():
    with pytest.raises(ConfigurationError, match=r"--config config.yaml, or in PROMPTMILL_CONFIG"):
        load(None, {"PROMPTMILL_CONFIG": ""})


def test_a_relative_path_ends_in_an_absolute_directory(files, monkeypatch):
    files.write(MODEL)
    monkeypatch.chdir(files.directory)
    settings = load(Path("config.yaml"), {})
    assert settings.directory == str(files.directory)
    assert settings.source == str(files.directory / "config.yaml")


def test_the_data_directory_is_the_argument_then_the_variable_then_the_setting_then_beside_the_file(files, tmp_path):
    text = MODEL + "promptmill_settings: {data_dir: state}\n"
    variable = {"PROMPTMILL_DATA_DIR": "/var/lib/mill"}
    assert files.load(text, variable, data_dir="/srv/mill").data_dir == "/srv/mill"
    assert files.load(text, variable).data_dir == "/var/lib/mill"
    assert files.load(text).data_dir == str(tmp_path / "state")
    assert files.load(MODEL).data_dir == str(tmp_path / ".promptmill")


def test_a_relative_data_directory_on_the_command_line_is_relative_to_where_one_stands(files, monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    assert files.load(MODEL, data_dir="mill").data_dir == "/mill"


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "model_list: []\n", "model_list:\n"])
def test_a_configuration_without_models_is_allowed_and_said(files, text):
    assert files.notices(text) == ["1: model_list: no models; add entries with `model_name` and `litellm_params`"]


def test_unknown_keys_are_told_with_the_closest_known_one(files):
    text = MODEL + "modellist: []\nrouter_settings:\n  num_retrys: 3\ngeneral_settings: {zzzzzz: 1}\n"
    assert files.notices(text + "includes: [a.yaml]\n") == [
        "4: modellist: unknown key; did you mean 'model_list'?",
        "8: includes: unknown key; did you mean 'include'?",
        "6: router_settings.num_retrys: unknown key; did you mean 'num_retries'?",
        "7: general_settings.zzzzzz: unknown key, ignored",
    ]


def test_keys_of_litellm_without_effect_here_are_told_without_guessing(files):
    text = MODEL + "litellm_settings: {drop_params: true, cache: true, success_callback: [langfuse]}\n"
    assert files.notices(text) == [
        "4: litellm_settings.drop_params: has no effect here yet",
        "4: litellm_settings.cache: has no effect here yet",
        "4: litellm_settings.success_callback: has no effect here yet: logging callbacks do not run here",
    ]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("general_settings", "custom_auth", "auth.check"),
        ("general_settings", "allowed_routes", "[/v1/models]"),
        ("general_settings", "max_budget", "0"),
        ("litellm_settings", "max_budget", "10"),
        ("litellm_settings", "guardrails", "[{a: b}]"),
        ("litellm_settings", "upperbound_key_generate_params", "{max_budget: 1}"),
        ("router_settings", "provider_budget_config", "{openai: {budget_limit: 1}}"),
    ],
)
def test_a_control_that_would_not_run_ends_the_start_until_it_is_accepted(files, section, key, value):
    text = MODEL + f"{section}:\n  {key}: {value}\n"
    (error,) = files.errors(text)
    assert error.startswith(f"config.yaml:5: {section}.{key}: {key} restricts access or changes requests")
    assert f"add {key} to promptmill_settings.accept_ignored" in error
    for name in (key, f"{section}.{key}"):
        accepted = files.notices(text + f"promptmill_settings: {{accept_ignored: [{name}]}}\n")
        assert accepted == [f"5: {section}.{key}: {key} is not enforced here, as accepted"]


@pytest.mark.parametrize("value", ["", "false", "[]", "{}", '""'])
def test_a_control_that_is_switched_off_is_no_error(files, value):
    assert files.notices(MODEL + f"guardrails: {value}\n") == []


def test_top_level_guardrails_end_the_start(files):
    (error,) = files.errors(MODEL + "guardrails:\n  - guardrail_name: pii\n")
    assert error.startswith("config.yaml:4: guardrails: guardrails restricts access")


def test_all_errors_are_told_at_once_in_the_order_of_their_lines(files):
    text = """\
    general_settings: {master_key: ""}
    model_list:
      - model_name: gpt-4
        litellm_params: {rpm: many}
    promptmill_settings:
      lease: 0.5
    """
    assert files.errors(text) == [
        "config.yaml:1: general_settings.master_key: the value is empty; give a value or take the line out",
        "config.yaml:4: model_list[0].litellm_params.model: missing; every entry needs it",
        "config.yaml:4: model_list[0].litellm_params.rpm: 'many' is not a number; give one",
        "config.yaml:6: promptmill_settings.lease: '0.5' is too small; give at least 1",
    ]


def test_a_section_that_is_no_mapping_is_an_error(files):
    (error,) = files.errors(MODEL + "litellm_settings: [callbacks]\n")
    assert error == "config.yaml:4: litellm_settings: a list is not a mapping; give `key: value` lines below it"


def test_loading_runs_no_user_code(files):
    files.write("import nowhere_to_be_found\nprompt_management = 1 / 0\n", "custom_prompt.py")
    before = set(sys.modules)
    files.load(SEED)
    assert not {name for name in set(sys.modules) - before if "custom" in name}


class TestEnvironmentVariables:
    def test_are_kept_resolved_and_seen_by_references(self, files):
        text = """\
        environment_variables:
          BASE: https://llm.example
          PORT_NUMBER: 8080
          COPY: os.environ/ORIGINAL
        model_list:
          - model_name: gpt-4
            litellm_params: {model: gpt-4, api_base: os.environ/BASE}
        """
        settings = files.load(text, {"ORIGINAL": "value", "BASE": "https://other.example"})
        assert settings.environment == {"BASE": "https://llm.example", "PORT_NUMBER": "8080", "COPY": "value"}
        assert settings.deployments[0].api_base == "https://llm.example"

    def test_that_refer_to_an_unset_one_are_left_out_and_told(self, files):
        text = MODEL + "environment_variables: {COPY: os.environ/ORIGINAL}\n"
        assert files.load(text).environment == {}
        assert files.notices(text) == [
            "4: environment_variables.COPY: the variable ORIGINAL is not set; it counts as absent"
        ]

    @pytest.mark.parametrize(
        "name", ["PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "HOME", "SHELL", "path", "PROMPTMILL_DATA_DIR"]
    )
    def test_that_decide_what_a_process_loads_are_refused(self, files, name):
        (error,) = files.errors(MODEL + f"environment_variables:\n  {name}: /tmp/evil\n")
        assert error.startswith(f"config.yaml:5: environment_variables.{name}: decides what a process loads")

    def test_need_names_that_a_shell_takes(self, files):
        (error,) = files.errors(MODEL + "environment_variables: {a-b: 1}\n")
        assert "environment_variables.a-b: not a variable's name" in error

    @pytest.mark.parametrize("value", ["true", "[sk-secret]", '"sk-secret\\0"', "{sk-secret: 1}"])
    def test_of_a_wrong_type_are_refused_without_showing_the_value(self, files, value):
        (error,) = files.errors(MODEL + f"environment_variables: {{TOKEN: {value}}}\n")
        assert "environment_variables.TOKEN: the value" in error
        assert "sk-secret" not in error


class TestDigest:
    BASE = MODEL + "litellm_settings: {callbacks: [hook.manager]}\n"

    def digest(self, files: ConfigFiles, text: str, environment: dict[str, str] | None = None) -> str:
        return files.load(text, environment).digest

    @pytest.fixture(autouse=True)
    def hook(self, files):
        files.write("manager = other = 1\n", "hook.py")

    def test_is_sixteen_hexadecimal_digits_and_stable(self, files):
        first = self.digest(files, self.BASE)
        assert len(first) == 16
        assert int(first, 16) >= 0
        assert first == self.digest(files, "# moved down\n" + self.BASE)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("sk-upstream", "sk-other"),
            ("sk-upstream", "sk-upstream, timeout: 5, stream_timeout: 1"),
            ("sk-upstream, aws_secret_access_key: x", "sk-upstream, aws_secret_access_key: y"),
            ("sk-upstream, extra_headers: {X-Key: x}", "sk-upstream, extra_headers: {X-Key: y}"),
        ],
    )
    def test_is_not_of_secrets_or_time_limits(self, files, one, other):
        first, second = (self.digest(files, self.BASE.replace("sk-upstream", part)) for part in (one, other))
        assert first == second

    def test_is_not_of_paths_or_our_own_limits(self, files):
        changed = self.BASE + "promptmill_settings: {data_dir: /elsewhere, request_timeout: 5}\n"
        assert self.digest(files, changed) == self.digest(files, self.BASE)

    def test_is_not_of_keys_for_they_change_without_a_restart(self, files):
        keys = "promptmill_settings: {keys: {a: {key: k-1, models: [gpt-4]}}}\n"
        assert self.digest(files, self.BASE + keys) == self.digest(files, self.BASE)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("openai/gpt-4", "openai/gpt-4o"),
            ("model_name: gpt-4", "model_name: gpt-5"),
            ("sk-upstream", "os.environ/K"),
            ("sk-upstream", "sk-upstream, temperature: 1"),
            ("hook.manager", "hook.other"),
            ("litellm_settings", "router_settings: {model_group_alias: {fast: gpt-4}}\nlitellm_settings"),
            ("litellm_settings", "promptmill_settings: {max_line_bytes: 1000}\nlitellm_settings"),
            ("litellm_settings", "promptmill_settings: {batch_limits: openai}\nlitellm_settings"),
        ],
    )
    def test_is_of_everything_that_decides_what_a_name_means(self, files, one, other):
        assert one in self.BASE
        assert self.digest(files, self.BASE.replace(one, other)) != self.digest(files, self.BASE)

    def test_is_of_what_callback_files_hold(self, files):
        before = self.digest(files, self.BASE)
        files.write("manager = 2\n", "hook.py")
        assert self.digest(files, self.BASE) != before

    def test_is_the_same_in_processes_that_see_different_variables(self, files):
        text = """\
        model_list:
          - model_name: gpt-4
            litellm_params:
              model: openai/gpt-4
              api_base: os.environ/BASE
              extra_headers: {X-Team: os.environ/TEAM, X-Plain: secret}
        """
        full, bare = files.load(text, {"BASE": "https://a.example", "TEAM": "t"}), files.load(text)
        assert full.digest == bare.digest
        assert full.deployments[0].id == bare.deployments[0].id

    def test_takes_a_module_without_a_file_by_its_name(self, files):
        assert isinstance(files.load(MODEL + "litellm_settings: {callbacks: [sys.path]}\n"), Settings)
