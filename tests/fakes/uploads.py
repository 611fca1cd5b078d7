"""Files for tests: settings with a directory of their own, and a form as clients send it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from fakes.configs import settings as make_settings
from fakes.edges import KEYS
from fakes.openai_shapes import check_file

from pipeline.settings import FileSettings, Key, Secret, Settings

OTHER = "sk-other-of-the-tests"
TENANTS = (*KEYS, Key(name="other", values=(Secret(OTHER),)))
JSONL = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4","messages":[]}}\n'
FILE_KEYS = {
    "id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"
}  # fmt: skip
"""Every key of OpenAI's file object."""


def file_settings(directory: Path, *, keys: tuple[Key, ...] = TENANTS, **limits: Any) -> Settings:
    """Return settings with three keys whose files are in `directory`."""
    return make_settings(data_dir=str(directory), keys=keys, files=FileSettings(**limits))


async def put(
    client: httpx2.AsyncClient,
    contents: bytes = JSONL,
    *,
    name: str = "in.jsonl",
    purpose: str = "batch",
    **fields: str,
) -> httpx2.Response:
    """Upload a file."""
    answer = await client.post("/v1/files", data={"purpose": purpose, **fields}, files={"file": (name, contents)})
    if answer.status_code == 200:
        check_file(answer.json())
    return answer


def form(*parts: bytes, boundary: bytes = b"x") -> bytes:
    """Return a form of whole parts, each with its headers."""
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + b"--%s--\r\n" % boundary


def field(name: str, value: str) -> bytes:
    """Return a part that is a field."""
    return f'content-disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def file_part(contents: bytes = JSONL, filename: bytes = b"in.jsonl", name: bytes = b"file") -> bytes:
    """Return a part that is a file."""
    return b'content-disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s' % (name, filename, contents)


def kept(directory: Path) -> list[str]:
    """Return the names of everything that is stored below a data directory, whatever it is."""
    return names_in(directory / "files")


def names_in(directory: Path) -> list[str]:
    """Return the names of all files in `directory`."""
    return sorted(path.name for path in directory.glob("*"))
