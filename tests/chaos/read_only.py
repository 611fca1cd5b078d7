"""A disk that becomes read-only under a running gateway, as the kernel makes it after an error, and writable again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chaos.arena import Arena

_MARK = "the-disk-is-read-only"

SITE = f"""
import errno, os, pathlib, sys

_mark = pathlib.Path(__file__).with_name("{_MARK}")
_disk = str(pathlib.Path(__file__).resolve().parents[1] / ".promptmill") + os.sep
_names = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.utime")
_writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def _refuse_if_there(file):
    if isinstance(file, int):
        file = os.readlink(f"/proc/self/fd/{{file}}")
    if os.path.realpath(os.fsdecode(file)).startswith(_disk) and _mark.exists():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

def _hook(event, arguments):
    if event in _names or event == "open" and arguments[2] & _writing:
        _refuse_if_there(arguments[0])

def _refused(call):
    def refused(descriptor, *rest):
        _refuse_if_there(descriptor)
        return call(descriptor, *rest)
    return refused

sys.addaudithook(_hook)
os.write, os.fsync, os.fdatasync = map(_refused, (os.write, os.fsync, os.fdatasync))
"""
"""
For `Layout.site`: while the mark is there, whatever would change a file or a name below the data directory fails with
EROFS, on descriptors that were open before, too: as with a disk that the kernel made read-only, and without a mount.
"""


@contextmanager
def read_only(arena: Arena) -> Iterator[None]:
    """Let nothing be written below the data directory, by any process of a gateway whose layout has SITE."""
    mark = arena.directory / "site" / _MARK
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()
