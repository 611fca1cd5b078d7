"""The listening socket: bound once, before anything starts, and shared by every ingress process."""

from __future__ import annotations

import errno
import socket
from typing import Final

from pipeline.errors import ConfigurationError

SOCKET_VARIABLE: Final = "PROMPTMILL_SOCKET_FD"
"""Number of the open, bound socket that an ingress process inherits: `up` binds the port once, for all of them."""

_QUEUE: Final = 2048
_UNSENT: Final = 256 * 1024
"""Bytes of answers the kernel keeps for a connection, or twice that; by itself it would keep up to 4 MB for each."""

_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses to recognize, not to bind


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address. Raises ConfigurationError; a busy port is never swapped."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"{host} is not an address of this machine ({error}); choose another --host") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT)  # connections inherit it
        bound.bind(address)
        bound.listen(_QUEUE)  # without it Linux lets a second process bind the port; early clients wait in the queue
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            remedy = f"stop the process that listens there, or choose another, for example --port {port + 1}"
            raise ConfigurationError(f"port {port} on {host} is in use; {remedy}") from None
        raise ConfigurationError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from None
    return bound


def address_for_clients(bound: socket.socket) -> tuple[str, int]:
    """Return host and port under which this machine reaches the socket."""
    host, port = bound.getsockname()[:2]
    return _EVERY_ADDRESS.get(host, host), port


def url_of(bound: socket.socket) -> str:
    """Return the gateway's URL, without a path."""
    host, port = address_for_clients(bound)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
