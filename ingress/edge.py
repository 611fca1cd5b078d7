"""What all requests of an ingress process share: settings, keys, the transport, permits, the disconnect watchers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio

from ingress.auth import Keyring
from pipeline import metrics
from pipeline.catalog import Catalog
from pipeline.errors import BacklogFull
from pipeline.settings import IngressSettings, Settings
from pipeline.stores.batch_quota import BatchQuota
from pipeline.stores.batches import BatchStore
from pipeline.stores.files import FileStore
from pipeline.stores.places import open_places

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from pipeline.transport.client import TransportClient


class Edge:
    """Everything an endpoint may need, built once per process; `watchers` lives as long as the lifespan."""

    def __init__(self, settings: Settings, transport: TransportClient, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self.transport = transport
        self.catalog = Catalog(settings)
        self.keyring = Keyring(settings.keys, environment)
        self.permits = permits = Permits(settings.ingress)
        metrics.REQUESTS_IN_FLIGHT["jobs",].set_function(lambda: permits.requests)
        places = open_places(settings, environment)
        self.files = FileStore(places.files, settings.files, transport.time)
        self.batches = BatchStore(places.batches, transport.time)
        self.quota = BatchQuota(self.batches, settings.batches, transport.time)
        self.validating = anyio.Lock()
        """Held while an upload is validated: that costs as much of a core as there is."""
        self.validations = 0
        """Uploads that are to be validated, from their first byte on."""
        self.transfers = 0
        """Files on their way in or out."""
        metrics.REQUESTS_IN_FLIGHT["transfers",].set_function(lambda: self.transfers)
        self.watchers: TaskGroup | None = None
        self.draining = False


class Permits:
    """How many requests, and bytes of their bodies, this process holds; both are refused above their limits."""

    def __init__(self, limits: IngressSettings) -> None:
        self._limits = limits
        self.requests = 0
        self.held = 0

    def enter(self, size: int) -> None:
        """Take a request in whose body has `size` bytes, as far as is known. Raises BacklogFull."""
        if self.requests >= self._limits.max_requests:
            raise BacklogFull(
                f"this process already holds {self.requests} requests; try again shortly",
                hint="start more ingress processes, or raise max_requests",
                retry_after=1.0,
            )
        if self.held + size > self._limits.max_buffered_bytes:
            raise self._full()
        self.requests += 1

    def leave(self) -> None:
        """Let a request go."""
        self.requests -= 1

    def hold(self, size: int) -> None:
        """Count bytes that have arrived. Raises BacklogFull, and then counts nothing."""
        if self.held + size > self._limits.max_buffered_bytes:
            raise self._full()
        self.held += size

    def release(self, size: int) -> None:
        """Count bytes as handed over."""
        self.held -= size

    def _full(self) -> BacklogFull:
        return BacklogFull(
            "this process holds as many bytes of request bodies as it may; try again shortly",
            hint="start more ingress processes, or raise max_buffered_bytes",
            retry_after=1.0,
        )
