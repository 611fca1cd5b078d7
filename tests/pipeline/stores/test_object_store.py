"""An object store that fails, lies or is full: what is said about it, and what is not done with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from fakes.configs import settings as make_settings
from fakes.object_servers import BUCKET, SECRET, VARIABLES, ObjectServer, run_object_server

from pipeline.errors import ConfigurationError, StorageFull, StorageUnavailable
from pipeline.settings import Secret, Settings, StorageSettings
from pipeline.stores import object_pieces, object_store
from pipeline.stores.blobs import PIECE, Blobs
from pipeline.stores.local import LocalBlobs
from pipeline.stores.places import open_places, prove

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setattr(object_store, "RETRIES", {"max_retries": 0})
    monkeypatch.setattr(object_pieces, "PAUSE", 0.0)
    with run_object_server() as running:
        yield running


@pytest.fixture
def blobs(server: ObjectServer) -> Blobs:
    return object_store.places(BUCKET, server.options)[1]


def configured(server: ObjectServer, **fields: str) -> Settings:
    options = {name: Secret(value) for name, value in {**server.storage_options, **fields}.items()}
    return make_settings(storage=StorageSettings(url=BUCKET, options=options))


# At the start


def test_a_store_that_does_what_is_needed_is_proven_and_left_as_it_was(server: ObjectServer) -> None:
    assert prove(configured(server), VARIABLES) == ""
    assert server.objects == {}
    assert {key.rpartition("/")[0] for method, key in server.requests if method == "PUT"} == {"some/prefix/proof"}


def test_a_store_that_creates_what_is_there_is_refused(server: ObjectServer) -> None:
    server.keeps_conditions = False
    with pytest.raises(ConfigurationError, match=r"If-None-Match.*two processes would own one batch"):
        prove(configured(server), VARIABLES)
    assert server.objects == {}


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (404, "NoSuchBucket"), (501, "NotImplemented")],
)
def test_a_store_that_will_never_do_is_refused_in_its_code_and_our_words(
    server: ObjectServer, status: int, code: str
) -> None:
    server.fault = lambda method, key: (status, code)
    with pytest.raises(ConfigurationError, match=f"refuses what is needed .{status} {code}") as caught:
        prove(configured(server), VARIABLES)
    assert "the bucket must exist" in caught.value.hint
    assert SECRET not in caught.value.message


def test_a_wrong_region_is_guessed_from_a_redirection(server: ObjectServer) -> None:
    server.fault = lambda method, key: (301, "PermanentRedirect")
    with pytest.raises(ConfigurationError, match="redirected: is the region right"):
        prove(configured(server), VARIABLES)


def test_a_store_that_is_away_is_a_doubt_and_no_refusal(server: ObjectServer) -> None:
    server.fault = lambda method, key: (503, "SlowDown")
    assert prove(configured(server), VARIABLES) == f"storage {BUCKET} fails (503 SlowDown GenericError)"
    assert "no answer" in prove(configured(server, endpoint="http://127.0.0.1:1"), VARIABLES)


def test_a_store_that_does_not_answer_is_waited_for_a_while(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE", 0.0)
    assert (
        prove(configured(server), VARIABLES) == f"storage {BUCKET} does not answer, or there are no credentials for it"
    )


def test_options_that_obstore_does_not_know_are_refused(server: ObjectServer) -> None:
    with pytest.raises(ConfigurationError, match=r"nonsense.*not valid for store"):
        prove(configured(server, nonsense="1"), VARIABLES)


def test_a_variable_that_is_not_set_is_named(server: ObjectServer) -> None:
    with pytest.raises(ConfigurationError, match=r"storage_options\.access_key_id names the variable STORE_ID"):
        open_places(configured(server), {})


def test_without_the_extra_the_error_says_what_to_install(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.stores.object_store")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigurationError, match="obstore is not installed") as caught:
        open_places(configured(server), VARIABLES)
    assert "pip install '.[objects]'" in caught.value.hint


def test_without_storage_files_are_in_the_data_directory(tmp_path: Path) -> None:
    places = open_places(make_settings(data_dir=str(tmp_path)))
    assert isinstance(places.files, LocalBlobs)
    assert prove(make_settings(data_dir=str(tmp_path))) == ""


# Later


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", StorageUnavailable),
        (403, "AccessDenied", StorageUnavailable),
        (507, "XMinioStorageFull", StorageFull),
        (403, "QuotaExceeded", StorageFull),
    ],
)
async def test_what_the_store_says_is_told_by_status_and_code_alone(
    server: ObjectServer, blobs: Blobs, status: int, code: str, kind: type[Exception]
) -> None:
    server.fault = lambda method, key: (status, code)
    with pytest.raises(kind, match=f"{status} {code}") as caught:
        await blobs.replace("some", b"x")
    assert SECRET not in str(caught.value)
    with pytest.raises(kind):
        await blobs.fetch(["some", "more"])


async def test_a_bucket_that_is_gone_is_no_missing_file(server: ObjectServer, blobs: Blobs) -> None:
    server.fault = lambda method, key: (404, "NoSuchBucket")
    with pytest.raises(StorageUnavailable, match="404 NoSuchBucket"):
        await blobs.replace("some", b"x")
    with pytest.raises(StorageUnavailable):
        async with blobs.write("some") as writer:
            await writer.commit()


async def test_an_upload_that_cannot_be_aborted_ends_with_its_own_error(server: ObjectServer, blobs: Blobs) -> None:
    server.fault = lambda method, key: (503, "SlowDown") if method == "DELETE" else None
    with pytest.raises(ZeroDivisionError):
        await give_up(blobs)
    assert ("DELETE", "some/prefix/batches/some") in server.requests


async def give_up(blobs: Blobs) -> None:
    async with blobs.write("some") as writer:
        await writer.write(bytes(6 * PIECE))
        raise ZeroDivisionError


async def test_nobody_answering_is_storage_unavailable(server: ObjectServer) -> None:
    files, _ = object_store.places(BUCKET, {**server.options, "endpoint": "http://127.0.0.1:1"})
    with pytest.raises(StorageUnavailable, match="no answer") as caught:
        await files.names()
    assert (caught.value.status, caught.value.retry_after) == (503, 5.0)


async def test_a_passing_failure_is_not_seen(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    answers = iter([(503, "SlowDown"), (500, "InternalError")])
    server.fault = lambda method, key: next(answers, None)
    _, blobs = object_store.places(BUCKET, server.options)
    await blobs.replace("some", b"x")
    assert len(server.requests) == 3


async def test_after_an_append_of_unknown_end_nothing_else_is_appended(server: ObjectServer, blobs: Blobs) -> None:
    async with blobs.grow("some") as growing:
        await growing.append(b"one\n")
        server.fault = lambda method, key: (500, "InternalError")
        with pytest.raises(StorageUnavailable):
            await growing.append(b"two\n")
        server.fault = lambda method, key: None
        with pytest.raises(StorageUnavailable, match="unknown end"):
            await growing.append(b"three\n")
        assert growing.size == 4
        await growing.append(b"two\n")  # the same once more, as for a full disk
        assert await growing.read(0, 100) == b"one\ntwo\n"
    async with blobs.grow("some") as growing:
        assert await growing.read(0, 100) == b"one\ntwo\n"


async def test_a_run_ends_before_an_object_that_is_missing(server: ObjectServer, blobs: Blobs) -> None:
    async with blobs.grow("some") as growing:
        for _ in range(3):
            await growing.append(b"line\n")
    del server.objects["some/prefix/batches.growing/some/00000001"]
    async with blobs.grow("some") as growing:
        assert growing.size == 5


async def test_small_appends_are_spread_and_large_ones_are_not(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_pieces, "PAUSE", 0.1)
    async with blobs.grow("some") as growing:
        begun = anyio.current_time()
        for _ in range(3):
            await growing.append(b"x")
        assert anyio.current_time() - begun >= 0.2
        monkeypatch.setattr(object_pieces, "SMALL", 1)
        monkeypatch.setattr(object_pieces, "PAUSE", 60.0)
        with anyio.fail_after(5):
            for _ in range(3):
                await growing.append(b"x")


async def test_reading_from_front_to_back_takes_few_requests(server: ObjectServer, blobs: Blobs) -> None:
    data = bytes(range(256)) * 2**14
    await blobs.replace("some", data)
    server.requests.clear()
    async with blobs.open("some") as blob:
        found = [await blob.read(at, 2**18) for at in range(0, len(data), 2**18)]
        assert await blob.read(7, 5) == data[7:12]
    assert b"".join(found) == data
    assert [method for method, _ in server.requests] == ["HEAD", "GET", "GET", "GET"]
