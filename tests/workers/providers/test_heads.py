"""Heads of requests: what is sent before a body, and what can never be."""

from __future__ import annotations

import pytest

from workers.providers._heads import Origin, Proxy, address, head

URL = "http://host/v1"


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("http://host", Origin(False, "host", 80), "/"),
        ("https://Host/v1/x?a=b%20c", Origin(True, "host", 443), "/v1/x?a=b%20c"),
        ("http://127.0.0.1:8000/", Origin(False, "127.0.0.1", 8000), "/"),
        ("http://[::1]:8000/v1", Origin(False, "::1", 8000), "/v1"),
        ("https://bücher.example/ü#part", Origin(True, "xn--bcher-kva.example", 443), "/%C3%BC"),
        ("http://vllm_1.local/a b", Origin(False, "vllm_1.local", 80), "/a%20b"),
    ],
)
def test_an_address_is_taken_apart(url: str, origin: Origin, target: str) -> None:
    where = address(url)
    assert (where.origin, where.target, where.authorization) == (origin, target, None)


@pytest.mark.parametrize(
    "url",
    ["nonsense", "ftp://host", "http://", "http://exa<mple", "http://h:0", "http://h:99999", "http://[::g]", "http://[::1",
     f"http://{'a' * 64}.example", "http://a..b", "http://a b/"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any: its text is not shown
        address(url)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://host:80", "host"),
        ("http://host:443", "host:443"),
        ("https://host:443", "host"),
        ("https://[::1]:80", "[::1]:80"),
    ],
)
def test_a_host_header_has_the_port_only_when_it_is_unusual(url: str, authority: str) -> None:
    assert b"\r\nHost: %s\r\n" % authority.encode() in head("POST", address(url), {})


def test_a_head_ends_where_the_length_goes() -> None:
    assert head("POST", address("http://host/x?y"), {"A": " b "}) == (
        b"POST /x?y HTTP/1.1\r\nHost: host\r\nAccept: */*\r\nAccept-Encoding: identity\r\nA: b\r\nContent-Length: "
    )


def test_an_operators_header_replaces_ours_whatever_its_case() -> None:
    sent = head("POST", address(URL), {"host": "virtual", "ACCEPT": "x", "accept-encoding": "gzip"}).lower()
    assert sent.count(b"host:") == sent.count(b"accept:") == sent.count(b"accept-encoding:") == 1
    assert b"host: virtual\r\n" in sent


def test_a_user_in_the_address_is_sent_unless_there_is_a_key() -> None:
    where = address("http://us%65r:pa%3Ass@host/")
    assert b"Authorization: Basic dXNlcjpwYTpzcw==\r\n" in head("POST", where, {})
    assert b"Basic" not in head("POST", where, {"authorization": "Bearer x"})


def test_a_value_may_have_letters_of_any_language() -> None:
    assert "X: Grüße\r\n".encode() in head("POST", address(URL), {"X": "Grüße"})


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "a\r\nEvil: b"},
        {"X": "a\nb"},
        {"X": "a\rb"},
        {"X": "a\x00b"},
        {"X\r\n": "a"},
        {"X Y": "a"},
        {"": "a"},
        {"X:": "a"},
        {"Content-Length": "1"},
        {"transfer-encoding": "chunked"},
    ],
)
def test_a_header_that_would_break_the_request_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any: its text is not shown
        head("POST", address(URL), headers)


@pytest.mark.parametrize("path", ["/a\r\nEvil: b", "/a b HTTP/1.1\r\n\r\n", "/\x00"])
def test_a_path_cannot_end_the_request_line(path: str) -> None:
    assert head("POST", address("http://host" + path), {}).count(b"\r\n") == 4


def test_a_proxy_is_given_the_whole_address_and_its_own_credentials() -> None:
    sent = head("POST", address("http://[::1]:8000/x"), {}, Proxy("proxy", 3128, "Basic abc"))
    assert sent.startswith(b"POST http://[::1]:8000/x HTTP/1.1\r\nHost: [::1]:8000\r\n")
    assert b"\r\nProxy-Authorization: Basic abc\r\n" in sent
    assert b"Proxy-" not in head("POST", address(URL), {}, Proxy("proxy", 3128))
    # Through a tunnel the provider would read them.
    assert b"Proxy-" not in head("POST", address("https://host/"), {}, Proxy("proxy", 3128, "Basic abc"))
