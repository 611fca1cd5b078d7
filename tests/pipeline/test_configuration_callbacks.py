"""Callbacks: found without running them, and said where they are when they are not where they should be."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fakes.config_files import MODEL, ConfigFiles

from pipeline.config_callbacks import source_file
from pipeline.errors import ConfigurationError


@pytest.fixture
def files(tmp_path: Path) -> ConfigFiles:
    return ConfigFiles(tmp_path)


def calling(paths: str) -> str:
    return MODEL + f"litellm_settings:\n  callbacks: {paths}\n"


def error(files: ConfigFiles, path: str) -> str:
    (message,) = files.errors(calling(path))
    prefix = "config.yaml:5: litellm_settings.callbacks: "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)


def test_come_in_the_order_they_stand_each_with_its_line(files):
    files.write("one = two = 1\n", "a.py")
    files.write("three = 1\n", "deep/er/b.py")
    settings = files.load(MODEL + "litellm_settings:\n  callbacks:\n    - a.two\n    - deep.er.b.three\n    - a.one\n")
    assert [(c.path, c.line) for c in settings.callbacks] == [("a.two", 6), ("deep.er.b.three", 7), ("a.one", 8)]


def test_may_come_from_a_package_beside_the_configuration(files):
    files.write("manager = 1\n", "prompts/__init__.py")
    assert [c.path for c in files.load(calling("prompts.manager")).callbacks] == ["prompts.manager"]


@pytest.mark.parametrize(
    "path", ["pipeline_does_not_matter.x", "nowhere.to.be.found", "sys.path.found.x", "__main__x.y"]
)
def test_that_nobody_has_are_errors(files, path):
    assert "not found in" in error(files, path)


def test_that_cannot_be_read_are_errors(files):
    (files.directory / "memory.py").symlink_to("/proc/self/mem")
    assert "the file of 'memory.x' cannot be read" in error(files, "memory.x")
    name = "m" * 300
    assert f"the file of '{name}.x' cannot be read (File name too long)" in error(files, f"{name}.x")


@pytest.mark.parametrize(
    "path", ["json.decoder.JSONDecodeError.x", "sys.path", "email.mime.text.encode_7or8bit", "json.dumps"]
)
def test_may_come_from_a_module_that_can_be_imported(files, path):
    if path.startswith("json.decoder"):
        assert "json/decoder/JSONDecodeError.py not found" in error(files, path)
    elif path.startswith("email"):
        assert "text.py has no top-level name `encode_7or8bit`" in error(files, path)
    else:
        assert len(files.load(calling(path)).callbacks) == 1


def test_a_broken_module_in_the_way_counts_as_not_found(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "specless", ModuleType("specless"))
    assert "specless.py not found" in error(files, "specless.x")


def test_a_directory_on_the_import_path_is_no_module(files, monkeypatch, tmp_path):
    (tmp_path / "elsewhere" / "custom_prompt").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert "custom_prompt.py not found" in error(files, "custom_prompt.manager")


def test_a_missing_file_is_told_with_the_file_that_defines_the_name(files):
    files.write("prompt_management = 1\n", "custom_logger.py")
    files.write("this is no python", "broken.py")
    assert error(files, "custom_prompt.prompt_management") == (
        f"custom_prompt.py not found in {files.directory}; "
        "custom_logger.py defines `prompt_management`: name it `custom_logger.prompt_management`"
    )


def test_a_missing_file_is_told_with_the_files_there_are(files):
    files.write("a = 1\n", "one.py")
    files.write("b = 1\n", "two.py")
    assert (
        error(files, "x.manager") == f"x.py not found in {files.directory}; the Python files there are one.py, two.py"
    )


def test_a_missing_file_in_an_empty_directory_is_told(files):
    message = error(files, "x.manager")
    assert message == f"x.py not found in {files.directory}; there is no Python file; put it beside the configuration"


def test_a_missing_name_is_told_with_the_closest_ones(files):
    files.write("prompt_manager = 1\n_private = 2\nother = 3\n", "hook.py")
    assert (
        error(files, "hook.prompt_management")
        == "hook.py has no top-level name `prompt_management`; it has `prompt_manager`"
    )
    assert error(files, "hook.zzz") == "hook.py has no top-level name `zzz`; it has `other`, `prompt_manager`"


def test_a_file_without_any_object_is_told(files):
    files.write("class Manager: ...\n", "hook.py")
    assert error(files, "hook.zzz") == "hook.py has no top-level name `zzz`; it defines no object"


def test_a_class_instead_of_an_object_is_told(files):
    files.write("class Manager: ...\n", "hook.py")
    assert error(files, "hook.Manager") == (
        "hook.py: `Manager` is a class; make an instance of it at the file's end and name that"
    )


def test_a_file_that_is_not_python_is_told_with_its_line(files):
    files.write("x = 1\nthis is no python\n", "hook.py")
    assert error(files, "hook.x").startswith("hook.py:2 is not Python: invalid syntax")
    (files.directory / "hook.py").write_bytes(b"x = 1\0")
    assert "hook.py:1 is not Python" in error(files, "hook.x")


@pytest.mark.parametrize(
    "source",
    [
        "manager = 1",
        "manager: int = 1",
        "a, (manager, b) = 1, (2, 3)",
        "def manager(): ...",
        "async def manager(): ...",
        "from elsewhere import thing as manager",
        "import manager",
        "import manager.deep",
        "if True:\n    manager = 1",
        "try:\n    manager = 1\nexcept Exception:\n    manager = 2",
        "with open('x') as manager:\n    pass",
        "for manager in range(3):\n    pass",
        "(manager := 1)",
        "from elsewhere import *",
        "globals()['manager'] = 1",
        "def __getattr__(name): ...",
        "def make():\n    global manager\n    manager = 1",
        "class manager: ...\nmanager = manager()",
        "pattern = '\\d'\nmanager = 1",
    ],
)
def test_every_way_to_define_a_name_is_understood(files, source):
    files.write(source + "\n", "hook.py")
    assert len(files.load(calling("hook.manager")).callbacks) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    manager = 1",
        "class C:\n    manager = 1",
        "x = [manager for manager in ()]",
        "x = {manager: 1 for manager in ()}",
        "x = lambda manager: 1",
        "print(manager)",
        "x.manager = 1",
        "from manager import x",
    ],
)
def test_what_only_looks_like_a_definition_is_not(files, source):
    files.write(source + "\n", "hook.py")
    assert "has no top-level name `manager`" in error(files, "hook.manager")


@pytest.mark.parametrize("name", ["pipeline", "workers", "ingress"])
def test_a_file_with_the_name_of_one_of_our_packages_is_refused_whether_it_is_used_or_not(files, name):
    files.write("1 / 0\nmanager = 1\n", f"{name}.py")
    message = f"{name}.py beside the configuration has the name of a package of promptmill; rename it"
    for text in (MODEL, f"{MODEL}litellm_settings:\n  callbacks: {name}.manager\n"):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            files.load(text)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/hook.manager", "is not a dotted path; give `file.object`"),
        ("./hook.manager", "is not a dotted path"),
        ("hook..manager", "is not a dotted path"),
        ("hook.a,hook.b", "is not a dotted path"),
        ("custom_prompt.py", "names a file; name the object in it: `custom_prompt.prompt_management`"),
        ("custom_prompt", "names no object; give `file.object`, like custom_prompt.prompt_management"),
    ],
)
def test_what_is_no_path_is_told(files, path, message):
    assert message in error(files, f"'{path}'")


@pytest.mark.parametrize("value", ["{a: b}", "[[a.b]]", "[1.5, true]"])
def test_of_a_wrong_type_are_errors(files, value):
    assert all("config.yaml:5: litellm_settings.callbacks: " in message for message in files.errors(calling(value)))


def test_names_built_into_litellm_are_told(files):
    files.write("manager = 1\n", "hook.py")
    text = calling("[langfuse, hook.manager, otel, hook.manager]")
    assert [c.path for c in files.load(text).callbacks] == ["hook.manager"]
    assert files.notices(text) == [
        "5: litellm_settings.callbacks: langfuse is built into LiteLLM and does not run here",
        "5: litellm_settings.callbacks: otel is built into LiteLLM and does not run here",
        "5: litellm_settings.callbacks: hook.manager is there twice; it runs once",
    ]


def test_names_built_into_litellm_that_refuse_requests_end_the_start_until_accepted(files):
    assert error(files, "presidio").startswith("presidio restricts access or changes requests in LiteLLM")
    accepted = calling("presidio") + "promptmill_settings: {accept_ignored: [presidio]}\n"
    assert files.load(accepted).callbacks == ()
    assert files.notices(accepted) == ["5: litellm_settings.callbacks: presidio is not enforced here, as accepted"]


def test_the_file_of_a_callback_is_the_one_beside_the_configuration_first(files):
    path = files.write("dumps = 1\n", "json.py")
    assert source_file(files.directory, "json.dumps") == path
    assert source_file(files.directory, "json.decoder.x").name == "decoder.py"
    assert source_file(files.directory, "sys.path") is None
