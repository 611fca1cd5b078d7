"""The store of files: records, expiry, quotas, and several processes on one directory."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakes.uploads import JSONL, names_in

from pipeline.errors import BodyTooLarge, NoSuchFile, QuotaExceeded, StorageFull
from pipeline.settings import FileSettings
from pipeline.stores.blobs import ABANDONED
from pipeline.stores.files import BATCH_EXPIRY, FileRecord, FileStore, Listing, Wanted, new_file_id
from pipeline.stores.local import LocalBlobs

pytestmark = pytest.mark.anyio

ALL = None


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def store_in(root: Path, clock: Clock | None = None, **limits: Any) -> FileStore:
    return FileStore(LocalBlobs(root), FileSettings(**limits), clock or time.time)


async def add(
    store: FileStore, contents: bytes = JSONL, owner: str = "team", purpose: str = "batch", seconds: int | None = None
) -> FileRecord:
    async with store.receive(owner) as upload:
        await upload.write(contents)
        return await upload.keep(Wanted("in.jsonl", purpose, seconds))


async def ids(store: FileStore, viewer: str | None = "team", **listing: Any) -> list[str]:
    files, _ = await store.page(viewer, Listing(**listing))
    return [file.id for file in files]


def age(path: Path) -> None:
    os.utime(path, (time.time() - 2 * ABANDONED,) * 2)


async def test_a_record_says_what_is_in_the_file(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock)
    record = await add(store, JSONL * 3)
    assert record == await store.get(record.file.id, "team")
    assert (record.file.bytes, record.lines) == (3 * len(JSONL), 3)
    assert record.sha256 == hashlib.sha256(JSONL * 3).hexdigest()
    assert (record.file.created_at, record.created) == (1_000_000, 1_000_000.25)
    assert record.file.expires_at == 1_000_000 + BATCH_EXPIRY
    assert names_in(tmp_path) == [record.file.id, f"{record.file.id}.json"]


async def test_what_is_not_kept_is_no_file(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    async with store.receive("team") as upload:
        await upload.write(JSONL)
    assert names_in(tmp_path) == await ids(store, ALL) == []


async def test_a_batch_can_publish_what_it_wrote(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    store = FileStore(blobs, FileSettings(max_file_bytes_per_key=1))
    name = new_file_id()
    async with blobs.write(name) as writer:
        await writer.write(JSONL)
        written = await writer.commit()
    assert await ids(store) == []
    record = await store.publish(name, "team", Wanted("out.jsonl", "batch_output"), written)
    assert await ids(store, purpose="batch_output") == [name]
    async with store.open(record) as blob:
        assert await blob.read(0, 1000) == JSONL


# Several processes


async def test_two_processes_see_each_others_files_at_once(tmp_path: Path) -> None:
    one, other = store_in(tmp_path), store_in(tmp_path)
    first = (await add(one)).file.id
    assert await ids(other) == [first]
    second = (await add(other)).file.id
    assert set(await ids(one)) == {first, second}
    await other.delete(first, "team")
    assert await ids(one) == [second]
    with pytest.raises(NoSuchFile):
        await one.get(first, "team")


async def test_only_one_of_two_deletes_is_told_that_it_deleted(tmp_path: Path) -> None:
    stores = [store_in(tmp_path) for _ in range(5)]
    file_id = (await add(stores[0])).file.id
    outcomes: list[str] = []

    async def delete(store: FileStore) -> None:
        try:
            await store.delete(file_id, "team")
            outcomes.append("deleted")
        except NoSuchFile:
            outcomes.append("missing")

    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(delete, store)
    assert sorted(outcomes) == ["deleted"] + ["missing"] * 4


async def test_the_record_goes_first_and_with_it_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    file_id = (await add(store)).file.id
    left: list[list[str]] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path: unlink(path) or left.append(names_in(tmp_path)))
    await store.delete(file_id, "team")
    assert left == [[file_id], []]


async def test_a_record_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    for _ in range(3):
        await add(store)
    read: list[str] = []
    fetch = LocalBlobs._fetch
    monkeypatch.setattr(LocalBlobs, "_fetch", lambda self, names: read.extend(names) or fetch(self, names))
    for _ in range(3):
        assert len(await ids(store)) == 3
    assert len(read) == 3


async def test_an_unreadable_record_is_no_file_and_harms_no_other(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    good, bad = (await add(store)).file.id, (await add(store)).file.id
    (tmp_path / "A copy.json").write_bytes(b"{}")
    for written in (b'{"file":', b'{"owner":"\xff"}'):
        (tmp_path / f"{bad}.json").write_bytes(written)
        assert await ids(store_in(tmp_path)) == [good]
        with pytest.raises(NoSuchFile):
            await store.get(bad, "team")


# Lists


async def test_files_of_one_second_keep_their_order(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock)
    made = []
    for _ in range(5):
        clock.now += 0.01
        made.append((await add(store)).file.id)
    assert await ids(store) == made[::-1]
    assert await ids(store, newest_first=False, after=made[1], limit=2) == made[2:4]
    assert (await store.page("team", Listing(limit=5)))[1] is False
    assert (await store.page("team", Listing(limit=4)))[1] is True


async def test_after_a_file_that_is_not_yours_there_is_nothing_to_tell(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    theirs = (await add(store, owner="other")).file.id
    await add(store)
    for after in (theirs, new_file_id(), "x" * 10_000):
        with pytest.raises(NoSuchFile):
            await ids(store, after=after)


# Expiry


async def test_an_expired_file_is_gone_before_it_is_swept(tmp_path: Path, clock: Clock) -> None:
    store = store_in(tmp_path, clock)
    short, long = (await add(store, seconds=3600)).file.id, (await add(store)).file.id
    forever = (await add(store, purpose="user_data")).file.id
    clock.now += 3599
    await store.get(short, "team")
    clock.now += 1
    assert set(await ids(store, ALL)) == {long, forever}
    with pytest.raises(NoSuchFile):
        await store.delete(short, "team")

    async def in_use(_: object) -> set[str]:
        return {short}

    await store.sweep(in_use)
    assert (await store.input(short)).file.id == short
    await store.sweep()
    assert len(names_in(tmp_path)) == 4
    clock.now += BATCH_EXPIRY
    await store.sweep()
    assert names_in(tmp_path) == [forever, f"{forever}.json"]


async def test_the_sweep_takes_what_dead_writers_left_and_nothing_younger(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    kept = (await add(store)).file.id
    for name in (f"{new_file_id()}.0.part", new_file_id(), f"{new_file_id()}.growing", "somebody-elses"):
        (tmp_path / name).touch()
    before = names_in(tmp_path)
    await store.sweep()
    assert names_in(tmp_path) == before
    for name in before:
        age(tmp_path / name)
    await store.sweep()
    left = names_in(tmp_path)
    assert {name for name in left if not name.endswith(".growing")} == {kept, f"{kept}.json", "somebody-elses"}
    assert len(left) == 4


async def test_sweeping_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    sweeps = 0

    async def nothing(_: object) -> tuple[str, ...]:
        return ()

    async def failing(_: object) -> None:
        nonlocal sweeps
        sweeps += 1
        if sweeps == 1:
            raise OSError("no such luck")
        if sweeps == 3:
            tasks.cancel_scope.cancel()

    monkeypatch.setattr("pipeline.stores.files.SWEEP_EVERY", 0)
    monkeypatch.setattr(store, "sweep", failing)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.maintain, nothing)
    assert sweeps == 3


# Limits


async def test_a_file_over_the_limit_is_refused_as_soon_as_that_is_known(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_upload_bytes=10)
    with pytest.raises(BodyTooLarge):
        async with store.receive("team", size=11):
            raise AssertionError("it was begun")
    async with store.receive("team") as upload:
        await upload.write(b"x" * 10)
        with pytest.raises(BodyTooLarge):
            await upload.write(b"x")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("limits", "error"), [({"max_file_bytes_per_key": 100}, QuotaExceeded), ({"max_file_bytes": 100}, StorageFull)]
)
async def test_quotas_count_what_is_there(tmp_path: Path, clock: Clock, limits: Any, error: type[Exception]) -> None:
    store, other = store_in(tmp_path, clock, **limits), store_in(tmp_path, clock, **limits)
    first = (await add(store, b"x" * 60, seconds=3600)).file.id
    await add(other, b"x" * 40)
    with pytest.raises(error):
        await add(store, b"x")
    clock.now += 3600
    await add(other, b"x" * 60)
    with pytest.raises(error):
        await add(store, b"x")
    with pytest.raises(NoSuchFile):
        await store.delete(first, "team")
    await store.sweep()
    assert len(names_in(tmp_path)) == 4


async def test_one_keys_quota_is_not_anothers(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_file_bytes_per_key=10)
    await add(store, b"x" * 10)
    await add(store, b"x" * 10, owner="other")
    assert len(await ids(store, ALL)) == 2


async def test_uploads_at_the_same_time_do_not_get_past_a_quota(tmp_path: Path) -> None:
    store = store_in(tmp_path, max_file_bytes_per_key=100)
    refused = 0

    async def one() -> None:
        nonlocal refused
        try:
            await add(store, b"x" * 60)
        except QuotaExceeded:
            refused += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(one)
    assert (len(await ids(store)), refused) == (1, 4)
    assert len(names_in(tmp_path)) == 2


async def test_a_list_takes_well_under_a_millisecond_a_file(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    record = (tmp_path / f"{(await add(store)).file.id}.json").read_bytes()
    known = record.partition(b'"file-')[2][:32]
    for _ in range(1_999):
        name = new_file_id()
        (tmp_path / f"{name}.json").write_bytes(record.replace(known, name.removeprefix("file-").encode()))
    firsts, seconds = [], []
    for _ in range(3):  # the best of three: others use this machine as well
        fresh = store_in(tmp_path)
        for spent in (firsts, seconds):
            begun = time.process_time()
            assert len(set(await ids(fresh))) == 2_000
            spent.append(time.process_time() - begun)
    assert min(firsts) < 0.2
    assert min(seconds) < 0.1
