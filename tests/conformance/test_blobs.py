"""The same cases on every place for blobs; a real S3 dialect has them in `tests/sdk`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.blob_cases import CASES, Case
from obstore.store import MemoryStore

from pipeline.stores.blobs import Blobs
from pipeline.stores.local import LocalBlobs
from pipeline.stores.objects import ObjectBlobs

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["directory", "objects"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return LocalBlobs(tmp_path / "blobs") if request.param == "directory" else ObjectBlobs(MemoryStore(), "blobs")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_of_every_place(blobs: Blobs, case: Case) -> None:
    await case(blobs)
