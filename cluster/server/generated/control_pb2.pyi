from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChallengeRequest(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class ChallengeAnswer(_message.Message):
    __slots__ = ("fleet", "node", "identity", "incarnation", "challenge", "proofs")
    FLEET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    fleet: str
    node: str
    identity: str
    incarnation: int
    challenge: bytes
    proofs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, fleet: _Optional[str] = ..., node: _Optional[str] = ..., identity: _Optional[str] = ..., incarnation: _Optional[int] = ..., challenge: _Optional[bytes] = ..., proofs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("slots",)
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    slots: bool
    def __init__(self, slots: _Optional[bool] = ...) -> None: ...

class NodeDescription(_message.Message):
    __slots__ = ("name", "identity", "incarnation", "host", "port", "peer_port", "http_port", "zone", "version", "state", "leads", "in_sync", "learning")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    PEER_PORT_FIELD_NUMBER: _ClassVar[int]
    HTTP_PORT_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    LEARNING_FIELD_NUMBER: _ClassVar[int]
    name: str
    identity: str
    incarnation: int
    host: str
    port: int
    peer_port: int
    http_port: int
    zone: str
    version: str
    state: str
    leads: int
    in_sync: int
    learning: int
    def __init__(self, name: _Optional[str] = ..., identity: _Optional[str] = ..., incarnation: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., peer_port: _Optional[int] = ..., http_port: _Optional[int] = ..., zone: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., leads: _Optional[int] = ..., in_sync: _Optional[int] = ..., learning: _Optional[int] = ...) -> None: ...

class SlotDescription(_message.Message):
    __slots__ = ("slot", "epoch", "primary", "in_sync", "learners", "lossy", "serving", "missing")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    LEARNERS_FIELD_NUMBER: _ClassVar[int]
    LOSSY_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    slot: int
    epoch: int
    primary: str
    in_sync: _containers.RepeatedScalarFieldContainer[str]
    learners: _containers.RepeatedScalarFieldContainer[str]
    lossy: bool
    serving: bool
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slot: _Optional[int] = ..., epoch: _Optional[int] = ..., primary: _Optional[str] = ..., in_sync: _Optional[_Iterable[str]] = ..., learners: _Optional[_Iterable[str]] = ..., lossy: _Optional[bool] = ..., serving: _Optional[bool] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class FleetDescription(_message.Message):
    __slots__ = ("fleet", "answered_by", "revision", "replicas", "min_in_sync", "nodes", "slots", "under_replicated", "unavailable", "etcd_reachable", "etcd_error")
    FLEET_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_BY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MIN_IN_SYNC_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    UNDER_REPLICATED_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    ETCD_REACHABLE_FIELD_NUMBER: _ClassVar[int]
    ETCD_ERROR_FIELD_NUMBER: _ClassVar[int]
    fleet: str
    answered_by: str
    revision: int
    replicas: int
    min_in_sync: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeDescription]
    slots: _containers.RepeatedCompositeFieldContainer[SlotDescription]
    under_replicated: int
    unavailable: int
    etcd_reachable: bool
    etcd_error: str
    def __init__(self, fleet: _Optional[str] = ..., answered_by: _Optional[str] = ..., revision: _Optional[int] = ..., replicas: _Optional[int] = ..., min_in_sync: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeDescription, _Mapping]]] = ..., slots: _Optional[_Iterable[_Union[SlotDescription, _Mapping]]] = ..., under_replicated: _Optional[int] = ..., unavailable: _Optional[int] = ..., etcd_reachable: _Optional[bool] = ..., etcd_error: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("node", "restart")
    NODE_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    node: str
    restart: bool
    def __init__(self, node: _Optional[str] = ..., restart: _Optional[bool] = ...) -> None: ...

class DrainProgress(_message.Message):
    __slots__ = ("leads", "last_copy", "done", "message")
    LEADS_FIELD_NUMBER: _ClassVar[int]
    LAST_COPY_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    leads: int
    last_copy: int
    done: bool
    message: str
    def __init__(self, leads: _Optional[int] = ..., last_copy: _Optional[int] = ..., done: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class NodeRequest(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("node", "slots", "lossy")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    LOSSY_FIELD_NUMBER: _ClassVar[int]
    node: str
    slots: _containers.RepeatedScalarFieldContainer[int]
    lossy: bool
    def __init__(self, node: _Optional[str] = ..., slots: _Optional[_Iterable[int]] = ..., lossy: _Optional[bool] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...
