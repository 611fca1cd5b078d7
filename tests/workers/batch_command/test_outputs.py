"""Where the results of a batch go: never in the place of its input."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from workers.batch_command.outputs import Targets, custom_ids


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.errors.jsonl"])
def test_results_do_not_take_the_place_of_their_input(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.touch()
    with pytest.raises(ConfigurationError, match="is the input"):
        Targets(tmp_path / "mine.jsonl").check(source)
    Targets(tmp_path / "other.jsonl").check(source)


def test_a_device_is_no_output_for_it_may_have_no_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no regular file"):
        custom_ids(Path("/dev/null"))
    (tmp_path / "inside").touch()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        custom_ids(tmp_path / "inside" / "out.jsonl")
