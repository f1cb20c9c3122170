"""Settings: parsed once at the edge (the CLI, which reads environment variables too), checked, handed down frozen.

Times are seconds, sizes bytes, unless the name says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PROTOCOL_VERSION = 1
"""The version of the contract that this release speaks."""

DEFAULT_CONTROLLER_PORT = 21001
DEFAULT_WORKER_PORT = 21002
DEFAULT_GATEWAY_PORT = 8000
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_STRATEGY = "expected_first_token"
"""The simulator's choice; the evidence is in docs/dispatch.md."""
LONGEST_GRACE = 366 * 86_400
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class SettingsError(ValueError):
    """A setting makes no sense; the message names it and says what would."""


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


def check_grace(seconds: float) -> None:
    """Pass a grace time.

    Raises:
        SettingsError: it is negative, or longer than anybody means.
    """
    _demand(0 <= seconds <= LONGEST_GRACE, f"grace is {seconds:g} s; it must be from 0 to {LONGEST_GRACE:,} s, a year")


_ADDRESS = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})$")


def is_address(text: str) -> bool:
    """Whether `text` is HOST:PORT (an IPv6 host in brackets) with a port that exists; gRPC wraps those that do not."""
    match = _ADDRESS.match(text)
    return match is not None and 0 < int(match[2]) <= 65535


def _demand_address(text: str, what: str) -> None:
    _demand(is_address(text), f"{what} {text!r} is not HOST:PORT with a port from 1 to 65535")


def _demand_token(token: str) -> None:
    # It travels as a header, and gRPC ends the call without a word when that cannot be.
    fit = token == token.strip() and token.isascii() and token.isprintable()
    _demand(fit, "the join token must be printable ASCII without spaces around it (a line end from a file, perhaps?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is told. What does not concern it, it ignores; `options` are checked by the engine itself."""

    model_path: str = ""
    """Folder of a checkpoint, or a hub name. Empty: the bundled demo model."""
    model_name: str = ""
    """Name to serve under. Empty: the last part of the path, or `parent_checkpoint-N`, as in LLaVA."""
    aliases: tuple[str, ...] = ()
    """Further names for it."""
    device: str = "auto"
    """torch device; "auto" takes a GPU where there is one."""
    dtype: str = "auto"
    """Element type; "auto" is bfloat16 on a GPU, float32 on a CPU."""
    threads: int = 0
    """CPU threads that torch may use. 0: the engine's own choice, one for a small model, else one a core. Too many
    slow every worker of the machine."""
    slots: int = 0
    """Requests computed at once. 0: the engine's own choice."""
    max_new_tokens_limit: int = 1024
    """The longest answer that may be asked for, in tokens."""
    context_tokens: int = 0
    """Upper bound for prompt and answer together. 0: the model's own."""
    kv_tokens: int = 0
    """Tokens that the KV cache holds, over all requests. 0: enough for the slots, within the device's memory."""
    batch_tokens: int = 0
    """Tokens computed in one step at most (prompt chunks and decodes). 0: the engine's own choice."""
    page_size: int = 16
    """Tokens in a page of the KV cache. Prefixes are shared in whole pages: large pages share less."""
    max_image_pixels: int = 50_000_000
    """Pictures of more pixels are refused before they are decoded."""
    max_images: int = 16
    """Pictures in one request at most."""
    image_cache_bytes: int = 256 * 1024 * 1024
    """Memory for features of pictures seen before."""
    speed: float | None = None
    """Advertised speed. None: as measured."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of this engine alone, by name (`--engine-option name=value`)."""

    def __post_init__(self) -> None:
        _demand(self.threads >= 0, "threads cannot be negative")
        _demand(self.slots >= 0, "slots cannot be negative")
        _demand(self.max_new_tokens_limit >= 1, "the limit of new tokens must be at least 1")
        _demand(self.page_size >= 1, "a page holds at least 1 token")
        if self.speed is not None:
            _demand(math.isfinite(self.speed) and self.speed >= 0, "speed must be finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What every node that listens is told."""

    host: str = "127.0.0.1"
    """Interface to listen on. Anything but loopback asks for thought: see join_token."""
    port: int
    """0: any free one."""
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """The largest message taken or sent."""
    grace: float = 5.0
    """At a clean stop, running streams may go on for this long."""

    def __post_init__(self) -> None:
        _demand(0 <= self.port <= 65535, f"port {self.port} does not exist; use 0 to 65535")
        _demand(self.max_message_bytes >= 1024, "messages need at least 1 KiB")
        check_grace(self.grace)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK_HOSTS or self.host.startswith("127.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """What a controller is told."""

    server: ServerSettings
    strategy: str = DEFAULT_STRATEGY
    """Dispatch strategy: one of core.strategies.STRATEGIES, an installed one, or `module:Class`."""
    heartbeat_interval: float = 30.0
    """Handed to workers when they register."""
    heartbeat_expiry: float = 90.0
    """A worker silent for this long is dropped. Three intervals forgive two lost heartbeats."""
    join_token: str = ""
    """What workers must show. Required where the controller listens beyond loopback."""
    max_attempts: int = 3
    """Workers that a request may lose in a row, without a new token in between."""
    resume_memory_bytes: int = 1024 * 1024 * 1024
    """For requests (with their pictures) that are kept while they are answered, so that another worker can go on. What
    does not fit is served, but not resumed. 0: none is kept."""
    queue_length: int = 256
    """Requests that may wait for one model while every slot is taken. 0: none; they are refused at once."""
    queue_wait: float = 60.0
    """Seconds that a request may wait."""
    parents: tuple[str, ...] = ()
    """Addresses of controllers that this one serves as a worker."""
    parent_join_token: str = ""
    """Shown to the parents."""
    address: str = ""
    """Address to advertise to the parents. Empty: the one it listens on."""

    def __post_init__(self) -> None:
        _demand(self.heartbeat_interval > 0, "the heartbeat interval must be above 0")
        _demand(
            self.heartbeat_expiry > self.heartbeat_interval,
            f"expiry ({self.heartbeat_expiry:g} s) must be longer than the interval ({self.heartbeat_interval:g} s)",
        )
        _demand(self.max_attempts >= 1, "at least one attempt is needed")
        _demand_token(self.join_token)
        _demand_token(self.parent_join_token)
        for parent in self.parents:
            _demand_address(parent, "the parent's address")
        if self.address:
            _demand_address(self.address, "the advertised address")
        _demand(self.queue_length >= 0, "the queue's length cannot be negative")
        _demand(self.queue_wait > 0, "the longest wait must be above 0")
        _demand(self.resume_memory_bytes >= 0, "the memory for resumes cannot be negative")
        _demand(
            self.server.on_loopback or bool(self.join_token),
            f"a controller that listens on {self.server.host} needs a join token, or anybody could register as a "
            "worker: set --join-token (or LLAVA_GRPC_JOIN_TOKEN), or listen on 127.0.0.1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker is told."""

    server: ServerSettings
    engine_name: str = "transformers"
    """Engine by name."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    controllers: tuple[str, ...] = (f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}",)
    """Addresses to register at. Empty: none (the worker is asked directly)."""
    address: str = ""
    """Address to advertise. Empty: the one it listens on."""
    join_token: str = ""
    """Shown to controllers."""
    check_heartbeat: bool = True
    """Whether controllers shall drop it when its heartbeats stop."""

    def __post_init__(self) -> None:
        for controller in self.controllers:
            _demand_address(controller, "the controller's address")
        if self.address:
            _demand_address(self.address, "the worker's address")
        _demand_token(self.join_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What a gateway is told."""

    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: int = DEFAULT_GATEWAY_PORT
    """0: any free one."""
    controllers: tuple[str, ...] = (f"127.0.0.1:{DEFAULT_CONTROLLER_PORT}",)
    """Whom it asks."""
    api_keys: tuple[str, ...] = ()
    """Of which one must be shown. Empty: anybody who reaches it may ask."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser; `*`: all."""
    image_hosts: tuple[str, ...] = ()
    """Hosts from which pictures may be fetched, `*.example.com` with all below it. Empty: none."""
    image_bytes: int = 20 * 1024 * 1024
    """The largest picture fetched."""
    image_timeout: float = 10.0
    """Seconds for fetching one."""
    body_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """The largest body taken. Base64 makes pictures a third larger."""

    def __post_init__(self) -> None:
        _demand(0 <= self.port <= 65535, f"port {self.port} does not exist; use 0 to 65535")
        _demand(bool(self.controllers), "a gateway needs a controller to ask")
        _demand(all(key.strip() == key and key for key in self.api_keys), "an API key is empty or has spaces around it")
        _demand(self.image_bytes >= 1, "pictures have at least one byte")
        _demand(self.image_timeout > 0, "the time for fetching a picture must be above 0")
        _demand(self.body_bytes >= 1024, "bodies need at least 1 KiB")
        for host in self.image_hosts:
            _demand("/" not in host and ":" not in host and host == host.lower(), f"{host!r} is no host to fetch from")
