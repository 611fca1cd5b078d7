"""What a run remembers beside its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from workers.batch_command.state import State, load


def test_what_is_remembered_is_read_again(tmp_path: Path) -> None:
    place = tmp_path / "out.jsonl.promptmill"
    assert load(place) is None
    state = State(run="r", url="http://here", started=4, batch="batch_1", replace=True)
    assert state.save(place) == load(place) == state


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("nonsense")
    with pytest.raises(ConfigurationError, match="cannot be read") as raised:
        load(tmp_path / "state")
    assert "remove it" in raised.value.hint
    with pytest.raises(ConfigurationError, match="nothing was submitted"):
        State(run="r", url="").save(tmp_path / "nowhere" / "state")
