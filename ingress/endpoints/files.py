"""Files: upload, list, retrieve, download, delete. Each key sees its own, the master key those of all."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from ingress.body import declared_length
from ingress.exchange import Exchange, route
from ingress.multipart import Form
from ingress.queries import query_of, whole_number
from ingress.transfer import receive, send, transfer, wanted_range
from ingress.validate import UploadCheck, validation
from pipeline import metrics
from pipeline.errors import BodyTooLarge, FileInUse, InvalidBatchFile, InvalidRequest, RangeNotSatisfiable
from pipeline.stores.blobs import Blob
from pipeline.stores.files import EXPIRY, FileRecord, Listing, Upload, Wanted
from pipeline.stores.verified import Verified

PURPOSES: Final = ("batch", "user_data")
"""What files are good for here; OpenAI's others belong to services that are not."""

MOST_LISTED: Final = 10_000

FORM_BYTES: Final = 2**20
"""What a form may have beside its file, and more than it can."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]", re.ASCII)


async def upload(exchange: Exchange) -> None:
    """Store a file, all of it or nothing. Raises InvalidRequest, BodyTooLarge, QuotaExceeded and StorageFull."""
    form = Form(exchange.header(b"content-type"))
    size = max(0, declared_length(exchange) - FORM_BYTES)
    edge, key = exchange.edge, exchange.key
    assert key is not None
    with transfer(edge), validation(exchange) as check:
        async with edge.files.receive(key.name, size) as file:
            async for data in receive(exchange, edge.settings.files.max_upload_bytes + FORM_BYTES):
                for contents in form.feed(data):
                    await file.write(contents)
                _check_purpose(form.fields.get("purpose", PURPOSES[0]))  # as soon as it is known
                _check_size(exchange, form.fields.get("purpose"), file.size)
            form.close()
            wanted = _wanted(form)
            if not file.size:
                raise InvalidRequest("the file is empty", param="file")
            _check_size(exchange, wanted.purpose, file.size)
            await _keep(exchange, file, wanted, check)


async def _keep(exchange: Exchange, file: Upload, wanted: Wanted, check: UploadCheck | None) -> None:
    """Make the upload a file and answer with it, or with what is wrong if its client wanted to know that first."""
    if check is not None and wanted.purpose != "batch":
        raise InvalidRequest("only files of the purpose `batch` can be validated", param="purpose")
    try:
        record = await file.keep(wanted, check)
    except InvalidBatchFile as error:
        assert check is not None
        metrics.REFUSALS[error.code, "ingress"].inc()
        await exchange.refuse(error.fields("ingress"), errors={"object": "list", "data": check.errors})
    else:
        await exchange.respond_json(record.file)


def _check_size(exchange: Exchange, purpose: str | None, size: int) -> None:
    """Raise BodyTooLarge for a batch's input that is larger than it may be."""
    most = exchange.edge.settings.batches.max_batch_bytes
    if purpose == "batch" and most is not None and size > most:
        raise BodyTooLarge(
            f"the input of a batch has at most {most} bytes; split it, or raise max_batch_bytes", param="file"
        )


async def list_files(exchange: Exchange) -> None:
    """Answer with a page of files."""
    files, more = await exchange.edge.files.page(exchange.viewer, _listing(exchange))
    first, last = (files[0].id, files[-1].id) if files else (None, None)
    await exchange.respond_json({"object": "list", "data": files, "first_id": first, "last_id": last, "has_more": more})


async def get_file(exchange: Exchange) -> None:
    """Answer with one file. Raises NoSuchFile."""
    record = await exchange.edge.files.get(exchange.scope["path_params"]["id"], exchange.viewer)
    await exchange.respond_json(record.file)


async def delete_file(exchange: Exchange) -> None:
    """Delete a file. Raises NoSuchFile, and FileInUse while an unfinished batch needs it."""
    edge, file_id = exchange.edge, exchange.scope["path_params"]["id"]
    record = await edge.files.get(file_id, exchange.viewer)
    if record.file.purpose == "batch" and await edge.batches.in_use([file_id]):
        message = "a batch that has not ended needs the file"  # maybe another key's, so it is not named
        raise FileInUse(message, hint="cancel it, or wait for its end", param="id")
    await edge.files.delete(file_id, exchange.viewer)
    await exchange.respond_json({"id": file_id, "object": "file", "deleted": True})


async def download(exchange: Exchange) -> None:
    """Answer with a file's contents, or with the one range of them that was asked for. Raises NoSuchFile."""
    files = exchange.edge.files
    record = await files.get(exchange.scope["path_params"]["id"], exchange.viewer)
    with transfer(exchange.edge):
        async with files.open(record) as blob:
            try:
                await _download(exchange, record, blob)
            except RangeNotSatisfiable as error:
                metrics.REFUSALS[error.code, "ingress"].inc()
                facts = [(b"content-range", b"bytes */%d" % blob.size), (b"etag", _etag(record))]
                await exchange.refuse(error.fields("ingress"), facts)


async def _download(exchange: Exchange, record: FileRecord, blob: Blob) -> None:
    etag = _etag(record)
    unchanged = exchange.header(b"if-range") in ("", etag.decode())
    part = wanted_range(exchange.header(b"range"), blob.size) if unchanged else None
    start, end = part or (0, blob.size)
    headers = [
        (b"content-length", b"%d" % (end - start)),
        (b"content-disposition", _disposition(record.file.filename)),
        (b"x-content-type-options", b"nosniff"),
        (b"accept-ranges", b"bytes"),
        (b"etag", etag),
    ]
    if part is not None:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, blob.size)))
    await exchange.start(206 if part else 200, b"application/octet-stream", headers)
    if exchange.scope["method"] == "HEAD":
        await exchange.send({"type": "http.response.body"})
    else:
        await send(exchange, blob if part else Verified(blob, record.sha256), start, end)


def _etag(record: FileRecord) -> bytes:
    """Return the checksum as a header: who resumes a download, and gets its end as a part, compares it himself."""
    return b'"%b"' % record.sha256.encode()


def _check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise InvalidRequest(
            f"`purpose` must be one of {', '.join(PURPOSES)}", hint="nothing here reads other files", param="purpose"
        )


def _wanted(form: Form) -> Wanted:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise InvalidRequest("`purpose` is missing; for the input of a batch send `batch`", param="purpose")
    _check_purpose(purpose)
    anchor, seconds = (form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return Wanted(form.filename or "", purpose)
    if anchor != "created_at":
        raise InvalidRequest("`expires_after[anchor]` must be `created_at`", param="expires_after[anchor]")
    return Wanted(form.filename or "", purpose, whole_number("expires_after[seconds]", seconds or "", EXPIRY))


def _listing(exchange: Exchange) -> Listing:
    query = query_of(exchange)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("`order` must be asc or desc", param="order")
    return Listing(
        purpose=query.get("purpose"),
        limit=whole_number("limit", query.get("limit", str(MOST_LISTED)), range(1, MOST_LISTED + 1)),
        newest_first=order == "desc",
        after=query.get("after"),
    )


def _disposition(filename: str) -> bytes:
    """Return the header that makes a browser store the file, under its name and no other meaning of it."""
    plain = _UNSAFE.sub("_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}".encode()


routes = [
    route("/files", "files", upload, "POST"),
    route("/files", "files", list_files, "GET"),
    route("/files/{id:path}/content", "files", download, "GET"),
    route("/files/{id:path}", "files", get_file, "GET"),
    route("/files/{id:path}", "files", delete_file, "DELETE"),
]
