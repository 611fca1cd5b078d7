"""`python silent.py PORT COUNT`: connections that say nothing, in a process of their own, until all are closed."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys


def main(port: int, count: int) -> None:
    """Print `open` when all are connected and `closed` when the other side has closed each of them."""
    selector = selectors.DefaultSelector()
    for _ in range(count):
        selector.register(socket.create_connection(("127.0.0.1", port)), selectors.EVENT_READ)
    print("open", flush=True)
    while selector.get_map():
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            with contextlib.suppress(OSError):
                if connection.recv(4096):
                    continue
            selector.unregister(connection)
            connection.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
