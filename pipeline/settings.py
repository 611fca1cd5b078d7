"""
What the gateway was told: frozen Structs, read once at start and passed explicitly.

Durations are seconds, sizes are bytes. `configuration.py` reads them from YAML; nothing else makes them but tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

ENVIRONMENT_PREFIX: Final = "os.environ/"


class Secret(msgspec.Struct, frozen=True):
    """A value that must not be shown: written down as it is, or as `os.environ/NAME`, read when it is needed."""

    source: str

    @property
    def variable(self) -> str | None:
        """The environment variable it comes from, if it does."""
        return self.source.removeprefix(ENVIRONMENT_PREFIX) if self.source.startswith(ENVIRONMENT_PREFIX) else None

    def reveal(self, environment: Mapping[str, str]) -> str | None:
        """Return the value; None when its variable is unset or empty."""
        return (environment.get(self.variable) or None) if self.variable else self.source

    def __repr__(self) -> str:
        return f"Secret({self.source if self.variable else '***'})"

    __str__ = __repr__


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One concrete endpoint and key behind a model name: an entry of `model_list`."""

    id: str
    """`model_info.id`, or a digest of the entry: stable over restarts, and it says nothing about the key."""
    model_name: str
    """The name clients use; entries that share it form a group. May hold a wildcard: `openai/*`."""
    model: str
    """`litellm_params.model`: provider prefix and the provider's own model name, `openai/gpt-4`."""
    any_provider: bool = False
    """Whether a request chose that prefix, as one does that fills in a bare `*`."""
    api_base: str | None = None
    api_key: Secret | None = None
    api_version: str | None = None
    organization: str | None = None
    headers: Mapping[str, str] = {}
    """`extra_headers`: sent with every call to this deployment."""
    timeout: float | None = None
    """For one provider call without streaming; unset: the request's deadline alone."""
    stream_timeout: float | None = None
    """Until the first byte of a streamed call, and between its bytes."""
    retries: int | None = None
    """`num_retries` or `max_retries` of this entry; overrides the router's."""
    weight: float | None = None
    rpm: int | None = None
    tpm: int | None = None
    mock_response: str | None = None
    """Answer with this text and call nobody."""
    prompt_id: str | None = None
    """Every request to the group references this prompt unless it names another."""
    prompt_variables: Mapping[str, Any] | None = None
    prompt_label: str | None = None
    prompt_version: str | int | None = None
    defaults: Mapping[str, Any] = {}
    """Other `litellm_params`: body fields used where the request has none (`temperature`, `max_tokens` …)."""
    batch_timeout: float | None = None
    """`timeout` of `batch_params`: for one provider call of a batch."""
    batch_defaults: Mapping[str, Any] = {}
    """The rest of `batch_params`: body fields of lines of batches, before `defaults` (`service_tier: flex`)."""
    unset: tuple[str, ...] = ()
    """Variables that are not set, and that say where calls go (`api_base` and the like): nothing may be sent, for it
    would reach another host than the one that was meant."""
    line: int = 0
    """Where the entry stands in the configuration file."""


class Callback(msgspec.Struct, frozen=True, kw_only=True):
    """A dotted path of `litellm_settings.callbacks`, and where it stands."""

    path: str
    file: str = ""
    line: int = 0


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key clients may use. Its name is the tenant that owns what it creates."""

    name: str
    values: tuple[Secret, ...]
    """Plain, `os.environ/NAME` or `sha256:<hex>`; two of them while a key is rotated."""
    models: tuple[str, ...] = ()
    """Model names or wildcards it may use; empty: all."""
    master: bool = False


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How dispatch chooses among deployments, and how often it tries."""

    retries: int = 2
    """`num_retries`: further attempts after a failure that another try may cure."""
    timeout: float | None = None
    """For one provider call; a deployment's own `timeout` overrides it."""
    allowed_fails: int = 3
    """Failures within a minute before a deployment cools down."""
    cooldown: float = 5.0
    """`cooldown_time`: how long a deployment rests."""
    retry_after: float = 0.0
    """Least pause before a retry."""
    aliases: Mapping[str, str] = {}
    """`model_group_alias`: further names of a group."""


class IngressSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the HTTP edge."""

    request_timeout: float = 600.0
    """Deadline of a request that names none; raise it for long reasoning models."""
    max_request_timeout: float = 3600.0
    max_body_bytes: int = 32 * 2**20
    """Largest request body; a larger one is a 413 before it is read."""
    max_buffered_bytes: int = 256 * 2**20
    """Request bodies held by one ingress process at a time; above it new ones are refused with 429."""
    max_unread_bytes: int = 256 * 2**20
    """Answers one ingress process holds for clients that do not read them; above it the slowest stream is cut."""
    max_backlog: int = 10_000
    """Jobs waiting in one stage before new ones are refused with 429."""
    max_backlog_bytes: int = 512 * 2**20
    """Bytes of bodies held in one stage before new jobs are refused with 429."""
    max_requests: int = 10_000
    """Requests in flight in one ingress process."""
    max_connections: int = 10_000
    """Open connections of one ingress process, and never more than its limit of open files leaves room for."""
    head_timeout: float = 10.0
    """For a request's line and headers; on a new connection it begins at once."""
    body_timeout: float = 30.0
    """For a body, and a second more for every 64 KB of it that came; also for the pause between two pieces."""
    keep_alive: float = 75.0
    """How long a connection may stay open between two requests; more than that of the proxy before it."""
    drain: float = 30.0
    """How long a stopping process waits for what it holds."""


class FileSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of `/v1/files`."""

    max_upload_bytes: int = 8 * 2**30
    """Largest file; a larger one is a 413, before it is read where its size is announced."""
    max_file_bytes: int | None = None
    """Bytes of all files together; unset: what the disk holds."""
    max_file_bytes_per_key: int | None = None
    """Bytes of one key's files together."""
    min_free_bytes: int = 512 * 2**20
    """Space that files leave free: the embedded server may write to the same disk."""
    max_transfers: int = 64
    """Uploads and downloads one ingress process has in flight; further ones get 429."""
    max_line_bytes: int = 32 * 2**20
    """Longest line of a batch's input."""


class StorageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where files and batches are kept."""

    url: str | None = None
    """`storage`: s3://, gs:// or az:// with a bucket and a prefix; unset: the data directory."""
    options: Mapping[str, Secret] = {}
    """`storage_options`: how the object store is reached, by obstore's names."""


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of `/v1/batches`, and how they are fed."""

    batch_window: int = 8000
    """Lines of all batches that are under way at a time; raise it for slow providers with much capacity."""
    batch_window_bytes: int = 64 * 2**20
    """Bytes of those lines: their bodies are in Redis meanwhile; raise it for long ones."""
    batch_line_timeout: float = 600.0
    """How long one try of a line may take; raise it for long reasoning models."""
    batch_line_tries: int | None = None
    """How often a line is tried whose provider or prompt manager fails; unset: until its batch expires."""
    batch_retention: float = 30 * 86400.0
    """How long a batch that has ended is known; lower it if there are very many."""
    batch_limits: str | None = None
    """`openai`: the limits below that are not given are those of OpenAI."""
    max_batch_lines: int = 1_000_000
    """Lines of one batch."""
    max_batch_bytes: int | None = None
    """Bytes of one batch's input; unset: `max_upload_bytes`."""
    max_embedding_inputs: int | None = None
    """Texts to embed of one batch."""
    max_batches_per_hour: int = 2000
    """Batches one key may make in an hour, which is OpenAI's limit as well."""
    max_open_batches: int = 1000
    """Batches of one key that have not ended."""


class PromptSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The resolve stage and its user code."""

    timeout: float = 30.0
    """`prompt_timeout`: a manager that takes longer is answered for with 504."""
    slots: int = 64
    """`prompt_slots`: hooks one resolve process runs at a time."""
    environment: tuple[str, ...] = ()
    """`prompt_env`: variables that managers need although `model_list` names them too."""
    accept_ignored: tuple[str, ...] = ()
    """Controls written for LiteLLM that are known not to run here, and are accepted as such."""


class DispatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The dispatch stage."""

    slots: int = 6000
    """`dispatch_slots`: provider calls one process has in flight; never more than it may have files open."""
    max_response_bytes: int = 64 * 2**20
    """Largest answer read from a provider, after decompression."""
    connect_timeout: float = 10.0


class TransportSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The way to Redis, and how long a delivery may go without a sign of life."""

    url: Secret | None = None
    """`redis_url`, or `REDIS_URL` in the environment; unset: the embedded server of `up`."""
    lease: float = 6.0
    """A dead worker's jobs are claimed after this long; raise it on networks that stall for seconds."""
    grace: float = 30.0
    """How long a stopping worker may go on with what it holds before handing it back."""
    batch_reserve: float = 0.25
    """Share of a worker's slots that batch jobs may not take."""
    dead_letter_bodies: bool = False
    """Keep bodies with dead letters: they hold prompts, so this is off."""
    maxmemory: int | None = None
    """Limit of the embedded server; unset: a quarter of the machine's memory."""
    accept_eviction: bool = False
    """Run on a server that evicts keys when it is full, and may lose jobs then."""
    persistence: str = "everysec"
    """`appendfsync` of the embedded server: `always`, `everysec` or `no`."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """Something in the configuration that is not an error, with its place."""

    message: str
    file: str = ""
    line: int = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration."""

    source: str = ""
    """The file it was read from; empty for the built-in demo."""
    directory: str = "."
    """Where callback files are looked for."""
    data_dir: str = ".promptmill"
    digest: str = ""
    """Of everything that decides what a name means and which lines are right; equal but during a rollout."""
    deployments: tuple[Deployment, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    keys: tuple[Key, ...] = ()
    router: RouterSettings = RouterSettings()
    ingress: IngressSettings = IngressSettings()
    files: FileSettings = FileSettings()
    storage: StorageSettings = StorageSettings()
    batches: BatchSettings = BatchSettings()
    prompts: PromptSettings = PromptSettings()
    dispatch: DispatchSettings = DispatchSettings()
    transport: TransportSettings = TransportSettings()
    environment: Mapping[str, str] = {}
    """`environment_variables`: set for every process of the gateway."""
    notices: tuple[Notice, ...] = ()
    """What `check` and the first screen warn about."""


def for_batches(settings: Settings) -> Settings:
    """Return the settings with every deployment as lines of batches use it: with its `batch_params`."""
    deployments = (
        msgspec.structs.replace(
            deployment,
            timeout=deployment.timeout if deployment.batch_timeout is None else deployment.batch_timeout,
            defaults={**deployment.defaults, **deployment.batch_defaults},
        )
        for deployment in settings.deployments
    )
    return msgspec.structs.replace(settings, deployments=tuple(deployments))
