from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.configs import deployment
from fakes.configs import settings as make_settings
from fakes.servers import Server, start_server

from pipeline.settings import BatchSettings, FileSettings, Settings, TransportSettings


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(
        deployment("gpt-4"),
        deployment("other"),
        data_dir=str(tmp_path),
        batches=BatchSettings(batch_window=20, batch_line_timeout=5),
        files=FileSettings(min_free_bytes=0),
        transport=TransportSettings(lease=1.0, grace=1.0),
    )
