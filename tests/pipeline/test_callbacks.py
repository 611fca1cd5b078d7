"""What the supervisor makes of the words of the process that imports the callbacks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipeline import callbacks, configuration
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

pytestmark = pytest.mark.anyio

MANAGER = """\
import atexit, os
from litellm.integrations.custom_prompt_management import CustomPromptManagement

class Mine(CustomPromptManagement):
    def get_chat_completion_prompt(self, model, messages, **rest):
        return model, messages, None

mine = Mine()
"""


def configured(directory: Path, more: str) -> Settings:
    (directory / "mine.py").write_text(MANAGER + more)
    (directory / "config.yaml").write_text("litellm_settings: {callbacks: mine.mine}\n")
    return configuration.load(directory / "config.yaml", {})


async def test_a_module_may_print_what_it_likes(tmp_path: Path) -> None:
    (found,) = await callbacks.describe(configured(tmp_path, "print('loaded', end='')\n"), os.environ)
    assert found["path"] == "mine.mine"


@pytest.mark.parametrize("more", ["os._exit(0)\n", "atexit.register(print, 'bye')\n"])
async def test_a_process_that_does_not_tell_is_an_error_in_words(tmp_path: Path, more: str) -> None:
    with pytest.raises(ConfigurationError, match="ended without saying what they are"):
        await callbacks.describe(configured(tmp_path, more), os.environ)


async def test_a_process_that_cannot_be_started_is_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = configured(tmp_path, "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        await callbacks.describe(settings, os.environ)
