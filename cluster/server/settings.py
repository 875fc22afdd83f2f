"""What an operator may set on a node, where it comes from, and what is wrong with it.

A value comes from the first of: the command line, the environment (GEARFLEET_PORT for `port`), the TOML file
(`port = 4730`, all keys at the top level), the default. The command line's options, the help and the table in
docs/commands.md are made from the fields below, so that a setting is written down once.
"""

import difflib
import hashlib
import ipaddress
import math
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENVIRONMENT_PREFIX: Final = "GEARFLEET_"
CONFIG_ENVIRONMENT: Final = "GEARFLEET_CONFIG"
NAME_CHARACTERS_MAX: Final = 32
NAME_DIGEST_CHARACTERS: Final = 8  # of a host's name that is longer
HANDLE_PREFIX_BYTES_MAX: Final = 36
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,32}$"
ETCD_PORT: Final = 2379
ETCD_ENDPOINTS_MAX: Final = 16
PEER_PORT: Final = 4731
_ALL_SETTINGS: Final = "gearfleet server --help lists all"
HTTP_PORT: Final = 4732
REPLICAS_MAX: Final = 7
# What a keep-alive may be late, beside the times that are set: turns of the loop, rounding of times-to-live.
LEASE_MARGIN_SECONDS: Final = 0.5
_MEBIBYTE: Final = 1024 * 1024
FLEET_PAYLOAD_BYTES_MAX: Final = 64 * _MEBIBYTE  # gRPC's messages end a little above
_SIZE: Final = re.compile(r"(\d+)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_HOST: Final = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_ENDPOINT: Final = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(:(?P<port>\d{1,5}))?")
_SIZE_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class SettingsError(ValueError):
    """One or more settings are wrong; the message has a line for each, with what to write instead."""


def parse_size_bytes(text: object) -> object:
    """Read "64M", "64MiB", "1g" or "4096" (powers of 1024); leave what is no such text to the next check."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return text
    return int(match[1]) * int(1024 ** _SIZE_POWERS[match[2].lower()])


class Endpoint(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read "etcd-1:2379,10.0.0.2,[::1]:2379". Raises ValueError that says what to write."""
    endpoints: list[Endpoint] = []
    for part in text.split(","):
        part = part.strip()
        if "://" in part:
            raise ValueError(f"write {part!r} as HOST:PORT, without a scheme; etcd_ca turns TLS on")
        match = _ENDPOINT.fullmatch(part)
        port = int(match["port"] or ETCD_PORT) if match else 0
        if match is None or not 1 <= port <= 65535:
            raise ValueError(f"{part!r} is no HOST:PORT; give a list such as etcd-1:2379,etcd-2:2379")
        endpoint = Endpoint(match["six"] or match["host"], port)
        if endpoint in endpoints:
            raise ValueError(f"{part} is there twice; leave one of them out")
        endpoints.append(endpoint)
    if len(endpoints) > ETCD_ENDPOINTS_MAX:
        raise ValueError(f"it has {len(endpoints)} endpoints; give at most {ETCD_ENDPOINTS_MAX}")
    return tuple(endpoints)


def parse_peer_remap(text: str) -> dict[str, Endpoint]:
    """Read "b=10.0.0.2:4731,c=[::1]:14731": by a node's name where to reach it. Raises ValueError."""
    places: dict[str, Endpoint] = {}
    for part in text.split(","):
        name, _, where = part.strip().partition("=")
        match = _ENDPOINT.fullmatch(where)
        port = int(match["port"] or PEER_PORT) if match else 0
        if match is None or not re.fullmatch(NAME_PATTERN, name) or not 1 <= port <= 65535:
            raise ValueError(f"{part.strip()!r} is no NAME=HOST:PORT; give a list such as b=10.0.0.2:4731")
        if name in places:
            raise ValueError(f"{name} is there twice; leave one of them out")
        places[name] = Endpoint(match["six"] or match["host"], port)
    return places


def _advertised(text: str) -> str:
    """Check what peers and clients are to connect to: a host name or an address."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        if not _HOST.fullmatch(text):
            raise ValueError(
                "give a host name or an address alone, without scheme or port; the ports are settings"
            ) from None
        return text
    if address.is_unspecified:
        raise ValueError("no other machine can connect to that; give this machine's name or address")
    return text


def _default_name() -> str:
    """The host's short name; of a longer one than a node's name may be, its beginning and a digest of it all.

    Hosts in a cloud are told apart by the end of their names: cut off, two of them were one node.
    """
    short = socket.gethostname().split(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", short)
    if len(name) > NAME_CHARACTERS_MAX:
        digest = hashlib.sha256(short.encode()).hexdigest()[:NAME_DIGEST_CHARACTERS]
        name = f"{name[: NAME_CHARACTERS_MAX - NAME_DIGEST_CHARACTERS - 1]}-{digest}"
    return name or "node"


def _default_advertise() -> str:
    """The host's name as it is: asking the resolver for a full one may take many seconds at start."""
    name = socket.gethostname()
    return name if _HOST.fullmatch(name) else "localhost"


Bytes = Annotated[int, BeforeValidator(parse_size_bytes)]


def _in(group: str, *, option: str = "", default: str = "") -> dict[str, Any]:
    """How the command line shows a field: its heading, its option if not the name, its default in words."""
    return {"group": group, "option": option, "default": default}


def environment_value(name: str) -> str | None:
    """A setting's value in the environment, None when it has none.

    Kubernetes gives every pod GEARFLEET_PORT=tcp://10.0.0.1:4730 when a service is called gearfleet, and
    GEARFLEET_HTTP_PORT when one is called gearfleet-http; that is no setting.
    """
    value = os.environ.get(ENVIRONMENT_PREFIX + name.upper())
    return None if not value or (name.endswith("port") and value.startswith("tcp://")) else value


# What Kubernetes puts into the environment of every pod for services whose names begin with "gearfleet".
_SERVICE: Final = re.compile(r".*_SERVICE_(HOST|PORT(_.+)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_.+)?")
# Variables that are no settings of a node: see CONFIG_ENVIRONMENT, cluster/cli/control.py and setup.py.
_OTHERS: Final = frozenset({"CONFIG", "PEER", "SECRET_FILE", "COMPILE"})
# Other spellings of options, by setting.
ALIASES: Final = {"name": ("--node",)}


def environment_notes() -> list[str]:
    """What is in the environment under our prefix, and is no setting: misspelt, most likely."""
    notes = []
    for variable, value in sorted(os.environ.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name in _OTHERS or name.lower() in Settings.model_fields:
            continue
        if _SERVICE.fullmatch("_" + name) or (name.endswith("PORT") and "://" in value):
            continue
        near = _nearest(name)
        hint = f"the nearest is {shown(near)['environment']}" if near else _ALL_SETTINGS
        notes.append(f"{variable} is no setting and is ignored; {hint}")
    return notes


class _Environment(EnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if environment_value(name)}


class Settings(BaseSettings):
    """A node's settings. `Settings(port=0)` reads the environment too; `load_settings` also reads a file."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    host: str = Field(
        "::",
        min_length=1,
        description="Address or name to listen on; of a name all addresses. :: is every IPv6 and IPv4 "
        "address.",
        json_schema_extra=_in("Network"),
    )
    port: int = Field(
        4730,
        ge=0,
        le=65535,
        description="Port to listen on; 0 takes a free one and the log says which.",
        json_schema_extra=_in("Network"),
    )
    backlog: int = Field(
        1024,
        ge=1,
        le=65535,
        description="Connections that may wait to be accepted; the kernel's somaxconn limits it too.",
        json_schema_extra=_in("Network"),
    )
    busy_poll_microseconds: int = Field(
        60,
        ge=0,
        le=1000,
        description="How long to look out for the next packet before sleeping, while that pays: less latency "
        "for a little processor time. 0 is never; on a single processor it is never done.",
        json_schema_extra=_in("Network"),
    )
    keepalive_idle_seconds: int = Field(
        5,
        ge=1,
        le=32767,
        description="Silence after which a connection is probed (TCP_KEEPIDLE).",
        json_schema_extra=_in("Network"),
    )
    keepalive_interval_seconds: int = Field(
        2,
        ge=1,
        le=32767,
        description="Time between two probes (TCP_KEEPINTVL).",
        json_schema_extra=_in("Network"),
    )
    keepalive_count: int = Field(
        3,
        ge=1,
        le=127,
        description="Unanswered probes after which the peer counts as dead (TCP_KEEPCNT).",
        json_schema_extra=_in("Network"),
    )
    user_timeout_seconds: int = Field(
        10,
        ge=1,
        le=86400,
        description="Time for which a peer's kernel may acknowledge nothing of what was sent before it "
        "counts as dead. One that only reads slowly is not dead.",
        json_schema_extra=_in("Network"),
    )

    data_dir: Path = Field(
        Path("gearfleet-data"),
        description="Directory of the journal; made when missing, locked against a second node.",
        json_schema_extra=_in("Journal"),
    )
    durability: Literal["fsync", "os", "memory"] = Field(
        "fsync",
        description="When a background job is acknowledged. fsync: it is on disk. os: the operating system "
        "has it; it survives the process, not the machine. memory: no journal; a restart forgets all jobs.",
        json_schema_extra=_in("Journal"),
    )
    segment_bytes: Bytes = Field(
        64 * _MEBIBYTE,
        ge=1024,
        le=1024 * _MEBIBYTE,
        description="Size at which a new journal file is begun.",
        json_schema_extra=_in("Journal"),
    )

    salvage: bool = Field(
        False,
        description="Start although the journal is damaged: pass over what cannot be read, and log how much.",
        json_schema_extra=_in("Journal"),
    )

    job_retries: int = Field(
        -1,
        ge=-1,
        le=2**31 - 1,
        description="How often a job runs again after its worker was lost; then it fails. -1 is without "
        "limit, 0 is never.",
        json_schema_extra=_in("Jobs"),
    )
    retry_pause_seconds_max: float = Field(
        300.0,
        ge=0.0,
        le=86400.0,
        description="How long a job that came back from lost workers waits at most. The first time it runs "
        "again at once; then after 1 s, 2 s, 4 s and so on, behind the others. 0 is without a pause.",
        json_schema_extra=_in("Jobs"),
    )
    on_timeout: Literal["requeue", "fail"] = Field(
        "requeue",
        description="What becomes of a background job over its worker's time limit: requeue counts it as a "
        "try and runs it again after a pause; fail ends it. A foreground job fails.",
        json_schema_extra=_in("Jobs"),
    )
    idle_function_seconds: float = Field(
        86400.0,
        ge=0.0,
        le=366 * 86400.0,
        description="How long a function without jobs and workers stays in `status` and metrics, so that an "
        "alarm on a missing worker goes on; 0 is not at all.",
        json_schema_extra=_in("Jobs"),
    )
    idle_functions_max: int = Field(
        4096,
        ge=1,
        le=2**20,
        description="How many such functions; beyond it those that no worker ever served are forgotten "
        "first, then those idle for longest.",
        json_schema_extra=_in("Jobs"),
    )
    worker_wakeup: int = Field(
        0,
        ge=0,
        le=255,
        description="Sleeping workers to wake for each new job; 0 is all of them.",
        json_schema_extra=_in("Jobs"),
    )
    reclaim_seconds: float = Field(
        2.0,
        ge=0.0,
        le=3600.0,
        description="How long a job that ran when its node went down waits for its worker's result after the "
        "restart or takeover, before it runs again.",
        json_schema_extra=_in("Jobs"),
    )
    exceptions: bool = Field(
        False,
        description="Send workers' exceptions to every client, not only to those that asked for them.",
        json_schema_extra=_in("Jobs"),
    )
    name: str = Field(
        default_factory=_default_name,
        validate_default=True,
        pattern=NAME_PATTERN,
        description="The node's name, in the log, in job handles and in its fleet; --node is the same.",
        json_schema_extra=_in("Jobs", default="the host's short name"),
    )
    handle_prefix: str = Field(
        "",
        validate_default=True,
        description="What every job handle of this node begins with; at most 36 bytes.",
        json_schema_extra=_in("Jobs", default="H:NAME"),
    )

    etcd: str = Field(
        "",
        description="etcd of the fleet: HOST:PORT, several with commas. Without it the node stands alone.",
        json_schema_extra=_in("Fleet", default="none"),
    )
    fleet: str = Field(
        "default",
        pattern=NAME_PATTERN,
        description="Name of the fleet; one etcd may have several.",
        json_schema_extra=_in("Fleet"),
    )
    advertise: str = Field(
        default_factory=_default_advertise,
        validate_default=True,
        description="Host name or address at which other nodes and clients reach this one; the ports are "
        "those that it listens on.",
        json_schema_extra=_in("Fleet", default="the host's name"),
    )
    zone: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,32}$",
        description="Where the node is (a rack, an availability zone): copies go to different ones.",
        json_schema_extra=_in("Fleet", default="none"),
    )
    replicas: int = Field(
        3,
        ge=1,
        le=REPLICAS_MAX,
        description="How many nodes keep each background job. Fixed when the fleet is made, as the next one.",
        json_schema_extra=_in("Fleet"),
    )
    min_in_sync: int = Field(
        0,
        ge=0,
        le=REPLICAS_MAX,
        validate_default=True,
        description="How many of them must have a job on disk before it is acknowledged.",
        json_schema_extra=_in("Fleet", default="a majority of the replicas"),
    )
    bootstrap_nodes: int = Field(
        0,
        ge=0,
        le=1000,
        validate_default=True,
        description="How many nodes must be there before a new fleet is made.",
        json_schema_extra=_in("Fleet", default="as many as replicas"),
    )
    replace_after_seconds: float = Field(
        300.0,
        ge=1.0,
        le=30 * 86400.0,
        description="How long a node may be gone before its copies are made anew on others.",
        json_schema_extra=_in("Fleet"),
    )
    remember_seconds: float = Field(
        600.0,
        ge=0.0,
        le=86400.0,
        description="How long the unique key of a finished background job that HAClient submitted is "
        "remembered, so that a repeat of the submit does not run it again.",
        json_schema_extra=_in("Fleet"),
    )
    remember_jobs_max: int = Field(
        262144,
        ge=0,
        le=2**24,
        description="How many such keys are remembered; beyond it the oldest are forgotten.",
        json_schema_extra=_in("Fleet"),
    )

    peer_host: str = Field(
        "",
        validate_default=True,
        description="Address to listen on for other nodes and for gearfleet's commands.",
        json_schema_extra=_in("Peers", default="as host; where that is all, as advertise and loopback"),
    )
    peer_port: int = Field(
        PEER_PORT,
        ge=0,
        le=65535,
        description="Port for them; 0 takes a free one.",
        json_schema_extra=_in("Peers"),
    )
    peer_remap: str = Field(
        "",
        description="NAME=HOST:PORT, several with commas or by repeating the option: where this node reaches "
        "the peer port of that node, instead of where it advertises it.",
        json_schema_extra=_in("Peers", default="none"),
    )
    peer_proof: Literal["required", "optional"] = Field(
        "required",
        description="Whether other nodes have to prove that they know the fleet's secret; optional is for "
        "the time of an upgrade from a release that cannot.",
        json_schema_extra=_in("Peers"),
    )
    control_from: Literal["loopback", "none"] = Field(
        "loopback",
        description="Who may give gearfleet's commands to the peer port without the fleet's secret, where it "
        "has no TLS.",
        json_schema_extra=_in("Peers"),
    )
    peer_certificate: Path | None = Field(
        None,
        description="PEM certificate chain of this node. With it nodes speak TLS and know each other by it.",
        json_schema_extra=_in("Peers"),
    )
    peer_key: Path | None = Field(
        None,
        description="PEM private key of that certificate.",
        json_schema_extra=_in("Peers"),
    )
    peer_ca: Path | None = Field(
        None,
        description="PEM certificates of the authorities that sign nodes' certificates.",
        json_schema_extra=_in("Peers"),
    )

    http_host: str = Field(
        "",
        validate_default=True,
        description="Address to listen on for health checks and metrics.",
        json_schema_extra=_in("HTTP", default="as host"),
    )
    http_port: int = Field(
        HTTP_PORT,
        ge=-1,
        le=65535,
        description="Port for /healthz, /readyz and /metrics; 0 takes a free one, -1 is none. A node that "
        "stands alone has none unless this is set.",
        json_schema_extra=_in("HTTP"),
    )
    metrics_functions_max: int = Field(
        1000,
        ge=0,
        le=100_000,
        description="How many functions /metrics lists by name; the others are summed.",
        json_schema_extra=_in("HTTP"),
    )

    lease_seconds: int = Field(
        5,
        ge=1,
        le=3600,
        description="After this much silence of a node the others take over. At least keepalive_seconds + "
        "2 x rpc_timeout_seconds + 0.5.",
        json_schema_extra=_in("etcd"),
    )
    keepalive_seconds: float = Field(
        1.0,
        ge=0.05,
        le=1200.0,
        description="How often a node tells etcd that it lives.",
        json_schema_extra=_in("etcd"),
    )
    rpc_timeout_seconds: float = Field(
        1.5,
        ge=0.05,
        le=1200.0,
        description="How long one call of etcd may take.",
        json_schema_extra=_in("etcd"),
    )
    etcd_user: str = Field(
        "",
        description="User of etcd, where it wants one.",
        json_schema_extra=_in("etcd", default="none"),
    )
    etcd_password_file: Path | None = Field(
        None,
        description="File with that user's password in its first line.",
        json_schema_extra=_in("etcd"),
    )
    etcd_ca: Path | None = Field(
        None,
        description="PEM certificates of the authorities that sign etcd's. With it etcd is called over TLS.",
        json_schema_extra=_in("etcd"),
    )
    etcd_certificate: Path | None = Field(
        None,
        description="PEM client certificate for etcd, where it wants one.",
        json_schema_extra=_in("etcd"),
    )
    etcd_key: Path | None = Field(
        None,
        description="PEM private key of that certificate.",
        json_schema_extra=_in("etcd"),
    )

    max_payload_bytes: Bytes = Field(
        64 * _MEBIBYTE,
        ge=1,
        le=2**32 - 1,
        description="Largest packet that a client or worker may send.",
        json_schema_extra=_in("Limits", option="--max-payload"),
    )
    max_connections: int = Field(
        0,
        ge=0,
        le=2**20,
        description="Connections served at once; 0 is as many as the limit on open files allows.",
        json_schema_extra=_in("Limits"),
    )
    max_memory_bytes: Bytes = Field(
        0,
        ge=0,
        le=2**50,
        description="Memory of the process from which on background jobs are refused.",
        json_schema_extra=_in(
            "Limits", option="--max-memory", default="80 % of the cgroup's limit or the machine's memory"
        ),
    )
    max_unread_bytes: Bytes = Field(
        64 * _MEBIBYTE,
        ge=1024,
        le=2**32 - 1,
        description="Output held for a peer that does not read; beyond it the peer is disconnected.",
        json_schema_extra=_in("Limits", option="--max-unread"),
    )
    max_unfinished_bytes: Bytes = Field(
        256 * _MEBIBYTE,
        ge=1024,
        le=2**40,
        description="Packets of all connections together whose end has not come; beyond it the one that was "
        "begun longest ago is given up. One of --max-payload always has room.",
        json_schema_extra=_in("Limits", option="--max-unfinished"),
    )
    packet_seconds: float = Field(
        60.0,
        gt=0,
        le=86400,
        description="A packet of which nothing more comes for this long is given up.",
        json_schema_extra=_in("Limits"),
    )
    first_packet_seconds: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="A connection that has sent nothing yet is closed after this long; 0 is never. One that "
        "has sent something may be silent for ever.",
        json_schema_extra=_in("Limits"),
    )
    tls_handshake_seconds: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="A connection whose TLS handshake takes longer is closed.",
        json_schema_extra=_in("Limits"),
    )

    tls_certificate: Path | None = Field(
        None,
        description="PEM certificate chain. With it every connection must use TLS.",
        json_schema_extra=_in("Security"),
    )
    tls_key: Path | None = Field(
        None,
        description="PEM private key of the certificate.",
        json_schema_extra=_in("Security"),
    )
    tls_ca: Path | None = Field(
        None,
        description="PEM certificates of the authorities whose client certificates are accepted; with it a "
        "client without one is refused.",
        json_schema_extra=_in("Security"),
    )
    shutdown_from: Literal["loopback", "any", "none"] = Field(
        "loopback",
        description="Who may stop the node with the text command shutdown.",
        json_schema_extra=_in("Security"),
    )
    user: str | None = Field(
        None,
        min_length=1,
        description="User to become after the port is open, when started as root.",
        json_schema_extra=_in("Security"),
    )

    log_file: Path | None = Field(
        None,
        description="File to log to; SIGHUP opens it anew, so that it can be rotated.",
        json_schema_extra=_in("Process", default="standard error"),
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least that is logged.",
        json_schema_extra=_in("Process"),
    )
    log_format: Literal["console", "json"] = Field(
        "console",
        description="Log lines for people, or one JSON object each.",
        json_schema_extra=_in("Process"),
    )
    pid_file: Path | None = Field(
        None,
        description="File that holds the process id while the node runs.",
        json_schema_extra=_in("Process"),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_type(cls, value: object, info: ValidationInfo) -> object:
        """True is no number and 1 is no switch, wherever it comes from. Texts are read: they are what the
        command line and the environment have."""
        field = cls.model_fields[info.field_name or ""]
        if not isinstance(value, str) and field.annotation in (bool, int, float) and not _fits(value, field):
            raise ValueError(f"give {_wanted(field)}")
        return value

    @field_validator("handle_prefix")
    @classmethod
    def _handle_prefix(cls, prefix: str, info: ValidationInfo) -> str:
        # Without a valid name there is an error already; this one has nothing to add.
        prefix = prefix or f"H:{info.data.get('name', 'node')}"
        if any(character.isspace() or not character.isprintable() for character in prefix):
            raise ValueError("leave out spaces, line ends, NUL and what else does not print")
        if len(prefix.encode()) > HANDLE_PREFIX_BYTES_MAX:
            raise ValueError(
                f"it has {len(prefix.encode())} bytes; use at most {HANDLE_PREFIX_BYTES_MAX}, "
                "because clients take handles of 63 bytes"
            )
        return prefix

    @model_validator(mode="after")
    def _tls_is_whole(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_certificate" if self.tls_certificate is None else "tls_key"
            raise ValueError(f"a TLS certificate and its key go together: set {missing} too")
        if self.tls_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_ca verifies clients over TLS: set tls_certificate and tls_key too")
        return self

    @field_validator(
        *("data_dir", "log_file", "pid_file", "tls_certificate", "tls_key", "tls_ca", "peer_certificate"),
        *("peer_key", "peer_ca", "etcd_password_file", "etcd_ca", "etcd_certificate", "etcd_key"),
        mode="before",
    )
    @classmethod
    def _path(cls, path: object) -> object:
        # Path("") is the current directory; nobody means that.
        if path == "":
            raise ValueError("give a path")
        return path

    @field_validator("etcd")
    @classmethod
    def _etcd(cls, text: str) -> str:
        return ",".join(str(endpoint) for endpoint in parse_endpoints(text)) if text else ""

    @field_validator("peer_remap")
    @classmethod
    def _peer_remap(cls, text: str) -> str:
        return ",".join(f"{name}={place}" for name, place in parse_peer_remap(text).items()) if text else ""

    @field_validator("advertise")
    @classmethod
    def _advertise(cls, text: str) -> str:
        return _advertised(text)

    @field_validator("min_in_sync")
    @classmethod
    def _min_in_sync(cls, count: int, info: ValidationInfo) -> int:
        replicas: int | None = info.data.get("replicas")
        if replicas is None:
            return count
        if count > replicas:
            raise ValueError(f"there are {replicas} replicas; give 1 to {replicas}, or 0 for a majority")
        return count or replicas // 2 + 1

    @field_validator("bootstrap_nodes")
    @classmethod
    def _bootstrap_nodes(cls, count: int, info: ValidationInfo) -> int:
        least: int | None = info.data.get("min_in_sync")
        replicas: int | None = info.data.get("replicas")
        if least is None or replicas is None:
            return count
        if 0 < count < least:
            raise ValueError(
                f"fewer than {least} nodes could acknowledge no job: give at least min_in_sync, or 0 for "
                "as many as replicas"
            )
        return count or replicas

    @field_validator("peer_host", "http_host")
    @classmethod
    def _as_host(cls, host: str, info: ValidationInfo) -> str:
        return host or str(info.data.get("host", ""))

    @model_validator(mode="after")
    def _fleet_is_whole(self) -> "Settings":
        pairs = (("etcd_certificate", "etcd_key"), ("etcd_user", "etcd_password_file"))
        for one, other in pairs:
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                missing = other if getattr(self, one) else one
                raise ValueError(f"{one} and {other} go together: set {missing} too")
        if self.etcd_certificate is not None and self.etcd_ca is None:
            raise ValueError("etcd_certificate is for TLS: set etcd_ca too")
        parts = ("peer_certificate", "peer_key", "peer_ca")
        missing_parts = [part for part in parts if getattr(self, part) is None]
        if 0 < len(missing_parts) < len(parts):
            raise ValueError(f"{', '.join(parts)} go together: set {' and '.join(missing_parts)} too")
        if not self.etcd:
            return self
        if self.durability != "fsync":
            raise ValueError(
                f"a node of a fleet keeps what it acknowledged: set durability to fsync, not "
                f"{self.durability}; or leave etcd out, and the node stands alone"
            )
        if self.max_payload_bytes > FLEET_PAYLOAD_BYTES_MAX:
            raise ValueError(
                f"max_payload_bytes cannot be {self.max_payload_bytes} in a fleet, where each job goes to "
                f"other nodes in one message: set it to at most {FLEET_PAYLOAD_BYTES_MAX} (64M)"
            )
        if self.salvage:
            raise ValueError(
                "salvage is for a node that stands alone: in a fleet a damaged node begins with nothing by "
                "itself, and the others have its jobs; leave --salvage out"
            )
        needed = self.keepalive_seconds + 2 * self.rpc_timeout_seconds + LEASE_MARGIN_SECONDS
        if needed > self.lease_seconds + 1e-9:
            raise ValueError(
                f"lease_seconds cannot be {self.lease_seconds}: keepalive_seconds + 2 x rpc_timeout_seconds "
                f"+ {LEASE_MARGIN_SECONDS} is {needed:g}, and a slow answer of etcd would look like a dead "
                f"node. Set lease_seconds to {math.ceil(needed - 1e-9)} or more, or lower the other two"
            )
        return self

    @property
    def etcd_endpoints(self) -> tuple[Endpoint, ...]:
        """Empty when the node stands alone."""
        return parse_endpoints(self.etcd) if self.etcd else ()

    @property
    def peer_places(self) -> dict[str, Endpoint]:
        """Where nodes are reached that are not reached where they advertise it, by name."""
        return parse_peer_remap(self.peer_remap) if self.peer_remap else {}

    @property
    def http_listens(self) -> bool:
        """Whether the HTTP port is to be opened."""
        return self.http_port >= 0 and (bool(self.etcd) or "http_port" in self.model_fields_set)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """No .env file and no secrets directory: the module's docstring has all sources."""
        return init_settings, _Environment(settings_cls)


def fields() -> Mapping[str, FieldInfo]:
    """The settings in the order in which they are shown."""
    return Settings.model_fields


def shown(name: str) -> Mapping[str, str]:
    """A field's group, option and default in words, for help and documents."""
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    values = {key: str(value) for key, value in extra.items()}
    values["option"] = values["option"] or "--" + name.replace("_", "-")
    values["environment"] = ENVIRONMENT_PREFIX + name.upper()
    return values


def _nearest(typed: str) -> str | None:
    """The setting that was meant, most likely; by the spelling of its option, too, which may be another. None
    where no name is like it."""
    spellings = {
        option.removeprefix("--").replace("-", "_"): name
        for name in Settings.model_fields
        for option in (shown(name)["option"], *ALIASES.get(name, ()))
    }
    spellings |= {name: name for name in Settings.model_fields}
    word = typed.lower().replace("-", "_")
    near = difflib.get_close_matches(word, spellings, n=1)
    return spellings[near[0]] if near else None


def load_settings(
    values: Mapping[str, object] | None = None,
    *,
    config: Path | None = None,
    options: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from the command line's `values`, the environment and a TOML file.

    `config` None takes the file that GEARFLEET_CONFIG names, if any. `options` names the options that the
    user typed, where they are not this project's own. Raises SettingsError.
    """
    values = dict(values or {})
    if config is None and os.environ.get(CONFIG_ENVIRONMENT):
        config = Path(os.environ[CONFIG_ENVIRONMENT])
    from_file = {} if config is None else read_config(config)
    origins: dict[str, str] = {}
    # The file's values must not hide the environment's: pydantic-settings prefers what it is called with.
    for name in from_file:
        origins[name] = f"{name} in {config}"
    for name in Settings.model_fields:
        if environment_value(name):
            origins[name] = shown(name)["environment"]
            from_file.pop(name, None)
    for name in values:
        origins[name] = (options or {}).get(name) or shown(name)["option"]
    try:
        found: dict[str, Any] = {**from_file, **values}
        return Settings(**found)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(fault, origins) for fault in error.errors())) from None


def read_config(path: Path) -> dict[str, object]:
    """A TOML file's settings. Raises SettingsError that says what to change in it."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise SettingsError(
            f"the configuration file {path} cannot be read ({error.strerror}): "
            f"correct --config or {CONFIG_ENVIRONMENT}, or the file's permissions"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the configuration file {path} is no TOML: {error}") from None
    faults = []
    for key, value in table.items():
        if key in Settings.model_fields:
            continue
        if isinstance(value, dict):
            faults.append(f"[{key}] in {path}: there are no tables here; put its keys at the top of the file")
            continue
        near = _nearest(key)
        faults.append(f"{key} in {path} is no setting; {f'the nearest is {near}' if near else _ALL_SETTINGS}")
    faults.extend(
        f"{key} in {path} cannot be {_as_toml(value)}: give {_wanted(field)}"
        for key, value in table.items()
        if (field := Settings.model_fields.get(key)) is not None and not _fits(value, field)
    )
    if faults:
        raise SettingsError("\n".join(faults))
    return table


def _fits(value: object, field: FieldInfo) -> bool:
    """Whether TOML's value is of the field's own type. Unlike a command line a file says which type it means:
    `port = true` is a slip, and not port 1."""
    annotation = field.annotation
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        size = any(isinstance(limit, BeforeValidator) for limit in field.metadata)
        return (isinstance(value, int) and not isinstance(value, bool)) or (size and isinstance(value, str))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str)


def _as_toml(value: object) -> str:
    """A value as it stands in the file."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _explain(fault: Any, origins: Mapping[str, str]) -> str:
    """One of pydantic's faults as a sentence with its remedy."""
    if not fault["loc"]:
        return str(fault["ctx"]["error"])
    name = str(fault["loc"][0])
    if name not in Settings.model_fields:
        return f"{name} is no setting"
    field = Settings.model_fields[name]
    message = fault["ctx"]["error"] if fault["type"] == "value_error" else f"give {_wanted(field)}"
    near = difflib.get_close_matches(str(fault["input"]).lower(), _choices(field), n=1)
    meant = f". Did you mean {near[0]!r}?" if near else ""
    return f"{origins.get(name, name)} cannot be {str(fault['input'])!r}: {message}{meant}"


def _choices(field: FieldInfo) -> list[str]:
    """The words that a field takes, when it takes only some."""
    return [choice for choice in get_args(field.annotation) if isinstance(choice, str)]


def _wanted(field: FieldInfo) -> str:
    """What a field takes, in words."""
    if choices := _choices(field):
        return "one of " + ", ".join(choices)
    if field.annotation is bool:
        return "true or false"
    if field.annotation is int:
        low = next(limit.ge for limit in field.metadata if hasattr(limit, "ge"))
        high = next(limit.le for limit in field.metadata if hasattr(limit, "le"))
        size = any(isinstance(limit, BeforeValidator) for limit in field.metadata)
        return f"a {'size such as 64M, in bytes' if size else 'whole number'} from {low} to {high}"
    if field.annotation is float:
        low = next(limit.ge for limit in field.metadata if hasattr(limit, "ge"))
        high = next(limit.le for limit in field.metadata if hasattr(limit, "le"))
        return f"a number from {low:g} to {high:g}"
    pattern = next((limit.pattern for limit in field.metadata if getattr(limit, "pattern", None)), None)
    if pattern:
        return f"1 to {NAME_CHARACTERS_MAX} letters, digits, dots, hyphens or underscores"
    if field.annotation in (Path, Path | None):
        return "a path"
    return "a text that is not empty"
