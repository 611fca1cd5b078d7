"""The input of a batch, line by line: each in its turn, and any of them again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pipeline.stores.blobs import Blob
from pipeline.stores.lines import LONGEST, Line, read_lines
from pipeline.stores.together import together
from workers.batches.lines import OpenLine


class Input:
    """Reads on from the line at `offset`, which has this `number`."""

    def __init__(self, blob: Blob, offset: int = 0, number: int = 1) -> None:
        self._blob = blob
        self._source = read_lines(blob, LONGEST, offset, number)
        self._read: deque[Line] = deque()

    async def next(self, most: int, most_bytes: int) -> list[Line]:
        """Return up to `most` lines that come next; the last may exceed `most_bytes`."""
        lines: list[Line] = []
        while len(lines) < most and most_bytes > 0:
            while not self._read:
                if (read := await anext(self._source, None)) is None:
                    return lines
                self._read.extend(read)
            line = self._read.popleft()
            lines.append(line)
            most_bytes -= line.end - line.offset
        return lines

    async def again(self, lines: Sequence[OpenLine]) -> list[Line]:
        """Return these lines as they stand in the input."""
        return await together(self._text, lines)

    async def _text(self, line: OpenLine) -> Line:
        data = (await self._blob.read(line.offset, line.size)).removesuffix(b"\n")
        return Line(line.number, line.offset, line.end, data.removeprefix(b"\xef\xbb\xbf") if not line.offset else data)
