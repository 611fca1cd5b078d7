"""The job of a line: how long it has."""

from __future__ import annotations

import pytest
from fakes.batches import CHAT, line
from fakes.configs import settings

from pipeline.batch_requests import Request
from pipeline.catalog import Catalog
from pipeline.settings import BatchSettings
from pipeline.stores.batch_records import BatchRequest
from pipeline.stores.lines import Line
from workers.batches.lines import LineReader

NOW = 1_700_000_000.0


@pytest.mark.parametrize(("left", "seconds"), [(86_400.0, 600), (60.0, 60)])
def test_a_line_has_its_own_time_but_none_beyond_that_of_its_batch(left: float, seconds: int) -> None:
    made = BatchRequest(
        id="batch_x", owner="", endpoint=CHAT, input_file_id="", output_file_id="", error_file_id="",
        created=NOW, expires=NOW + left,
    )  # fmt: skip
    known = settings(batches=BatchSettings(batch_line_timeout=600))
    reader = LineReader(made, known, Catalog(known))
    data = line("a")
    request = reader.read(Line(1, 0, len(data), data))
    assert isinstance(request, Request)
    assert reader.job(request, "0-a", int(NOW * 1000)).deadline == (NOW + seconds) * 1000
