"""Contents that are compared with what was stored while they are read."""

from __future__ import annotations

import hashlib

from pipeline.errors import FileDamaged
from pipeline.stores.blobs import Blob


class Verified:
    """A blob with a known SHA-256. Who reads it from front to back does not get its end if it is another."""

    def __init__(self, blob: Blob, sha256: str) -> None:
        self._blob = blob
        self._wanted = sha256
        self._found = hashlib.sha256()
        self._read = 0

    @property
    def size(self) -> int:
        """Bytes it has."""
        return self._blob.size

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes as they are; those elsewhere than after the last ones are not compared. Raises FileDamaged."""
        data = await self._blob.read(offset, length)
        if offset == self._read and data:
            self._found.update(data)
            self._read += len(data)
            if self._read == self.size and self._found.hexdigest() != self._wanted:
                raise FileDamaged("the file is not what was stored; its checksum differs", hint="upload it again")
        return data
