"""YAML with places: syntax, duplicate keys, aliases and `include`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.config_files import MODEL, ConfigFiles

from pipeline import yaml_source
from pipeline.configuration import load
from pipeline.errors import ConfigurationError
from pipeline.yaml_source import parse


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def test_values_know_their_line_and_how_they_were_written(files):
    root = parse(files.write("a:\n  - 007\n  - b: 2024-02-01\n    c: [1.50, no]\n"))
    first, second = root.value["a"].value
    assert (first.value, first.text, first.line) == (7, "007", 2)
    assert (second.value["b"].value, second.value["b"].line) == ("2024-02-01", 3)
    assert [(node.value, node.text, node.line) for node in second.value["c"].value] == [
        (1.5, "1.50", 4),
        (False, "no", 4),
    ]
    assert root.plain() == {"a": [7, {"b": "2024-02-01", "c": [1.5, False]}]}


def test_a_missing_file_is_named_with_its_directory(files):
    with pytest.raises(ConfigurationError) as caught:
        load(files.directory / "absent.yaml", {})
    assert str(caught.value) == f"absent.yaml not found in {files.directory}; check the path"


def test_a_directory_is_no_configuration(files):
    with pytest.raises(ConfigurationError, match="must be a readable file"):
        load(files.directory, {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model_list:\n  - a: 'sk-secret\n", 3),
        ("a: 1\n b: sk-secret\n", 2),
        ("a: [sk-secret\nb: }", 2),
        ("a: 1\n--- \nb: sk-secret\n", 2),
        ("a: 1\n\tb: sk-secret", 2),
        ("a: *sk_secret\n", 1),
    ],
)
def test_a_syntax_error_has_its_place_and_quotes_nothing_of_the_file(files, text, line):
    (error,) = files.errors(text)
    assert error.startswith(f"config.yaml:{line}: not valid YAML: ")
    assert "secret" not in error


def test_bytes_that_are_no_text_are_an_error(files):
    path = files.directory / "config.yaml"
    path.write_bytes(b"a: \xff\xfe\x00\n")
    with pytest.raises(ConfigurationError, match=r"config\.yaml: not valid YAML"):
        load(path, {})


@pytest.mark.parametrize("text", ["- model_list\n", "just a text\n", "\n\n42\n"])
def test_a_file_that_is_no_mapping_is_an_error(files, text):
    (error,) = files.errors(text)
    assert error.endswith("not a mapping; a configuration starts with keys like `model_list:`")


def test_duplicate_keys_are_errors_with_both_lines(files):
    assert files.errors("model_list: []\nx: {a: 1, a: 2}\nmodel_list: []\n") == [
        "config.yaml:2: 'a' is there twice, first on line 2; keep one",
        "config.yaml:3: 'model_list' is there twice, first on line 1; keep one",
    ]


def test_merge_keys_bring_in_a_mapping_that_own_keys_override(files):
    text = """\
    x: &one {a: 1, b: 1}
    y: &two {b: 2, c: 2}
    z: {<<: [*one, *two], c: 3}
    """
    assert parse(files.write(text)).value["z"].plain() == {"a": 1, "b": 1, "c": 3}


def test_a_merge_key_needs_a_mapping(files):
    assert files.errors("x: {<<: 1}\n") == ["config.yaml:1: `<<` needs a mapping to merge; give an alias of one"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: !!set {a: null, b: null}\n", ""),
        ("x: !!binary aGk=\n", "the YAML tag 'binary' is not supported; write a plain value"),
        ("x: !mine 1\n", "the YAML tag '!mine' is not supported; write a plain value"),
        ("x: !!int abc\n", "not a int; quote it to make it a text"),
        ("[a]: 1\n", "a list or mapping is used as a key; use a plain text"),
        ("x: &a [*a]\n", "an alias stands for something that contains it; write it out"),
    ],
)
def test_what_yaml_can_do_beyond_plain_values_is_refused(files, text, message):
    if message:
        assert files.errors(text) == [f"config.yaml:1: {message}"]
    else:
        assert parse(files.write(text)).plain() == {"x": {"a": None, "b": None}}


def test_nesting_without_end_is_an_error(files):
    (error,) = files.errors("x: " + "[" * 2000 + "]" * 2000 + "\n")
    assert "nested too deeply" in error


def test_aliases_that_multiply_are_stopped(files, monkeypatch):
    monkeypatch.setattr(yaml_source, "MOST_NODES", 1000)
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (error,) = files.errors("\n".join(lines))
    assert "aliases make this more than 1000 values" in error


class TestInclude:
    def test_extends_lists_and_replaces_other_values(self, files):
        files.write(
            "model_list:\n  - model_name: b\n    litellm_params: {model: b}\nrouter_settings: {num_retries: 7}\n",
            "more/b.yaml",
        )
        text = MODEL + "include: [more/b.yaml]\nrouter_settings: {num_retries: 1, retry_after: 5}\n"
        settings = files.load(text)
        assert [(d.model_name, d.line) for d in settings.deployments] == [("gpt-4", 2), ("b", 2)]
        assert (settings.router.retries, settings.router.retry_after) == (7, 0)
        (notice,) = settings.notices
        assert notice.file == str(files.directory / "more/b.yaml")
        assert "`router_settings` of this included file replaces all of the one at" in notice.message
        assert notice.message.endswith("config.yaml:5")

    def test_may_be_nested_and_is_relative_to_the_file_that_declares_it(self, files):
        files.write("include: c.yaml\n", "more/b.yaml")
        files.write(MODEL, "more/c.yaml")
        settings = files.load("model_list:\ninclude: [os.environ/PART]\n", {"PART": "more/b.yaml"})
        assert [d.model_name for d in settings.deployments] == ["gpt-4"]
        assert settings.notices == ()

    def test_of_an_included_file_keeps_errors_at_their_own_place(self, files):
        files.write("router_settings:\n  num_retries: x\n", "b.yaml")
        (error,) = files.errors(MODEL + "include: [b.yaml]\n")
        assert error.startswith("b.yaml:2: router_settings.num_retries: 'x'")

    def test_of_a_missing_file_is_an_error_at_the_line_that_includes_it(self, files):
        assert files.errors("include:\n  - absent.yaml\n") == [
            f"config.yaml:2: included file absent.yaml not found in {files.directory}; "
            "the path is relative to the file that includes it"
        ]

    def test_of_each_other_is_an_error_that_shows_the_circle(self, files):
        files.write("include: [c.yaml]\n", "b.yaml")
        files.write("include: [b.yaml]\n", "c.yaml")
        (error,) = files.errors("include: [b.yaml]\n")
        assert "files include each other: b.yaml -> c.yaml -> b.yaml" in error

    @pytest.mark.parametrize("value", ["[1]", "{a: b}", "os.environ/UNSET", '[""]'])
    def test_needs_file_names(self, files, value):
        assert files.errors(f"include: {value}\n") == [
            "config.yaml:1: include: not a file name; give a list of YAML files"
        ]

    @pytest.mark.parametrize("value", ["", "[]"])
    def test_of_nothing_is_nothing(self, files, value):
        assert len(files.load(MODEL + f"include: {value}\n").deployments) == 1
