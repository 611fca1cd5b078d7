"""What owners leave to those who come after them: whole lines, as far as they were written when it was handed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.job import Reply
from pipeline.stores.batch_records import Part
from pipeline.stores.local import LocalBlobs
from workers.batches.answers import answered, unrun
from workers.batches.parts import ERRORS, RESULTS, Done, adopt, open_parts, remove_parts

pytestmark = pytest.mark.anyio

BATCH = "batch_" + "a" * 32
BODY = b'{"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}'


def result(number: int, body: bytes = BODY) -> bytes:
    return answered("a", number, f"r{number}", Reply(id="x"), body)


def error(number: int) -> bytes:
    return unrun("a", number, f"r{number}", "batch_expired", "It expired.")


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "batches")


async def write(blobs: LocalBlobs, owner: int, results: bytes, errors: bytes = b"") -> None:
    async with open_parts(blobs, BATCH, owner, ()) as parts:
        await parts.append(RESULTS, results)
        await parts.append(ERRORS, errors)


async def copied(blobs: LocalBlobs, owner: int, adopted: tuple[Part, ...], kind: str) -> bytes:
    async with open_parts(blobs, BATCH, owner, adopted) as parts, blobs.write("copy", parts.size(kind)) as writer:
        await parts.copy(kind, writer)
        await writer.commit()
        async with blobs.open("copy") as copy:
            return await copy.read(0, copy.size)


async def test_a_new_owner_knows_what_is_done_and_what_it_came_to(blobs: LocalBlobs) -> None:
    await write(blobs, 1, result(1) + result(70_000), error(2))
    done = Done()
    (part,) = await adopt(blobs, BATCH, (), 1, done)
    assert part == Part(1, len(result(1) + result(70_000)), len(error(2)))
    assert [number for number in (1, 2, 3, 69_999, 70_000, 10**9) if number in done] == [1, 2, 70_000]
    assert (done.completed, done.failed, done.count) == (2, 1, 3)
    assert done.failures == {"batch_expired": 1}
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.cached_tokens) == (6, 4, 2)


@pytest.mark.parametrize("torn", [b"{", result(2)[:-1], b"x" * 3_000_000])
async def test_a_line_that_was_torn_by_a_crash_is_not_there(blobs: LocalBlobs, torn: bytes) -> None:
    await write(blobs, 1, result(1) + torn)
    done = Done()
    adopted = await adopt(blobs, BATCH, (), 1, done)
    assert done.count == 1
    assert await copied(blobs, 2, adopted, RESULTS) == result(1)


async def test_of_an_append_that_a_power_failure_spoilt_what_is_whole_counts(blobs: LocalBlobs) -> None:
    await write(blobs, 1, result(1) + b"\0" * 50 + result(2) + result(3))
    done = Done()
    adopted = await adopt(blobs, BATCH, (), 1, done)
    assert [number in done for number in (1, 2, 3)] == [True, False, False]
    await write(blobs, 2, result(2))
    adopted = await adopt(blobs, BATCH, adopted, 2, again := Done())
    assert again.count == 2
    assert await copied(blobs, 3, adopted, RESULTS) == result(1) + result(2)


@pytest.mark.parametrize("spoilt", [b"\0" * (len(result(2)) - 1) + b"\n", b""])
async def test_what_a_disk_spoilt_after_it_was_adopted_runs_again(
    blobs: LocalBlobs, tmp_path: Path, spoilt: bytes
) -> None:
    await write(blobs, 1, result(1) + result(2) + result(3), error(4))
    adopted = await adopt(blobs, BATCH, (), 1, Done())
    file = tmp_path / "batches" / f"{BATCH}-{RESULTS}-1.growing"
    file.write_bytes(result(1) + spoilt + (result(3) if spoilt else b""))
    again = await adopt(blobs, BATCH, adopted, 2, done := Done())
    assert again == (Part(1, len(result(1)), len(error(4))),)
    assert [number in done for number in (1, 2, 3, 4)] == [True, False, False, True]
    assert await copied(blobs, 3, again, RESULTS) == result(1)


async def test_tokens_of_a_line_that_was_written_twice_count_once(blobs: LocalBlobs) -> None:
    await write(blobs, 1, result(1) + result(1))
    await adopt(blobs, BATCH, (), 1, done := Done())
    assert (done.completed, done.usage.input_tokens) == (1, 3)


async def test_an_owner_that_wrote_nothing_is_not_looked_up_again(blobs: LocalBlobs) -> None:
    await write(blobs, 1, b"")
    assert await adopt(blobs, BATCH, (), 1, Done()) == ()


async def test_what_an_owner_writes_after_it_was_succeeded_counts_for_nothing(blobs: LocalBlobs) -> None:
    async with open_parts(blobs, BATCH, 1, ()) as frozen:
        await frozen.append(RESULTS, result(1))
        adopted = await adopt(blobs, BATCH, (), 1, Done())
        await frozen.append(RESULTS, result(2) + result(3))
        await write(blobs, 2, result(2))
        done = Done()
        again = await adopt(blobs, BATCH, adopted, 2, done)
    assert done.count == 2
    assert 3 not in done
    assert await copied(blobs, 3, again, RESULTS) == result(1) + result(2)


async def test_of_parts_that_went_into_files_nothing_stays(blobs: LocalBlobs, tmp_path: Path) -> None:
    await write(blobs, 1, result(1))
    await write(blobs, 2, b"", error(2))
    await remove_parts(blobs, BATCH, 2)
    assert list((tmp_path / "batches").iterdir()) == []


def test_a_line_is_one_line_whatever_the_answer_looks_like() -> None:
    assert result(1, b'{\r\n  "a": "b\\n"\n}').count(b"\n") == 1
    assert '"a": "gr\ufffd\u00fcn"' in result(1, b'{"a": "gr\xff\xc3\xbcn"}').decode()
