"""Gateways and environments for real client SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import page
from fakes.environments import Environments, names
from fakes.gateways import start_gateway
from fakes.upstream import run_upstream_in_thread


@pytest.fixture(scope="session")
def environments() -> Iterator[Environments]:
    made = Environments(names())
    yield made
    made.close()


@pytest.fixture(scope="module")
def page_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[page.Running]:
    """The page's own files, with an address for its models."""
    directory: Path = tmp_path_factory.mktemp("page")
    with run_upstream_in_thread() as upstream:
        upstream.default = page.answer
        page.copy_files(directory)
        variables = {"OPENAI_API_KEY": page.UPSTREAM_KEY}
        with start_gateway(directory, config=page.config(upstream.url), variables=variables) as gateway:
            yield page.Running(gateway, upstream)


@pytest.fixture
def running(page_gateway: page.Running) -> page.Running:
    """The same gateway, for a test of its own: what the provider received before is forgotten."""
    page_gateway.upstream.requests.clear()
    return page_gateway
