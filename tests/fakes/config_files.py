"""Configuration files written for one test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from pipeline.configuration import load
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings

MODEL = "model_list:\n  - model_name: gpt-4\n    litellm_params: {model: openai/gpt-4, api_key: sk-upstream}\n"


class ConfigFiles:
    """A directory to write files into, and to load the configuration of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, text: str, name: str = "config.yaml") -> Path:
        """Write `text`, its indentation taken off, and return the path."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return path

    def load(self, text: str, environment: Mapping[str, str] | None = None, **arguments: str) -> Settings:
        """Return the settings that `text` gives."""
        return load(self.write(text), environment or {}, **arguments)

    def errors(self, text: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """Return the errors `text` ends with, the directory taken off each."""
        try:
            self.load(text, environment)
        except ConfigurationError as error:
            return str(error).replace(f"{self.directory}/", "").split("\n")
        raise AssertionError("it was loaded without an error")

    def notices(self, text: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """Return what is warned about, as `line: message`."""
        return [f"{notice.line}: {notice.message}" for notice in self.load(text, environment).notices]
