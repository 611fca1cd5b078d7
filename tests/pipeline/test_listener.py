"""The socket that every ingress process shares."""

from __future__ import annotations

import socket

import pytest

from pipeline.errors import ConfigurationError
from pipeline.listener import address_for_clients, listen, url_of


def test_a_busy_port_is_never_swapped_for_another() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is in use; .*--port {port + 1}"):
            listen("127.0.0.1", port)


def test_clients_can_connect_before_an_ingress_accepts() -> None:
    with listen("127.0.0.1", 0) as first, socket.create_connection(address_for_clients(first)) as client:
        assert client.getpeername() == first.getsockname()


def test_the_url_is_one_that_clients_can_use() -> None:
    with listen("0.0.0.0", 0) as first:
        assert url_of(first) == f"http://127.0.0.1:{first.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_stands_in_brackets() -> None:
    try:
        first = listen("::", 0)
    except ConfigurationError:
        pytest.skip("no IPv6 address here")
    with first:
        assert url_of(first) == f"http://[::1]:{first.getsockname()[1]}"


@pytest.mark.parametrize(("host", "remedy"), [("192.0.2.1", "--host or --port"), ("no such host", "--host")])
def test_an_address_that_is_not_ours_is_refused_with_the_remedy(host: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        listen(host, 0)
