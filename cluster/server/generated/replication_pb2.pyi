from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Message(_message.Message):
    __slots__ = ("hello", "frame", "refusal", "nonce", "proofs")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    refusal: Refusal
    nonce: bytes
    proofs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., nonce: _Optional[bytes] = ..., proofs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("fleet", "node", "identity", "incarnation", "protocol", "slots", "version")
    FLEET_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    fleet: str
    node: str
    identity: str
    incarnation: int
    protocol: int
    slots: int
    version: str
    def __init__(self, fleet: _Optional[str] = ..., node: _Optional[str] = ..., identity: _Optional[str] = ..., incarnation: _Optional[int] = ..., protocol: _Optional[int] = ..., slots: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("group", "entries", "acknowledged", "offers", "answers", "pieces", "requests", "replies", "silent")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    group: int
    entries: bytes
    acknowledged: int
    offers: _containers.RepeatedCompositeFieldContainer[Offer]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    pieces: _containers.RepeatedCompositeFieldContainer[Piece]
    requests: bytes
    replies: bytes
    silent: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, group: _Optional[int] = ..., entries: _Optional[bytes] = ..., acknowledged: _Optional[int] = ..., offers: _Optional[_Iterable[_Union[Offer, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ..., pieces: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ..., requests: _Optional[bytes] = ..., replies: _Optional[bytes] = ..., silent: _Optional[_Iterable[str]] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("slot", "epoch", "history", "number")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    slot: int
    epoch: int
    history: _containers.RepeatedScalarFieldContainer[int]
    number: int
    def __init__(self, slot: _Optional[int] = ..., epoch: _Optional[int] = ..., history: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("slot", "epoch", "verdict", "number")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Answer.Verdict]
        ACCEPTED: _ClassVar[Answer.Verdict]
        REJECTED: _ClassVar[Answer.Verdict]
        NEEDS_STATE: _ClassVar[Answer.Verdict]
    UNKNOWN: Answer.Verdict
    ACCEPTED: Answer.Verdict
    REJECTED: Answer.Verdict
    NEEDS_STATE: Answer.Verdict
    SLOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    slot: int
    epoch: int
    verdict: Answer.Verdict
    number: int
    def __init__(self, slot: _Optional[int] = ..., epoch: _Optional[int] = ..., verdict: _Optional[_Union[Answer.Verdict, str]] = ..., number: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("slot", "epoch", "data", "last")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    slot: int
    epoch: int
    data: bytes
    last: bool
    def __init__(self, slot: _Optional[int] = ..., epoch: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...
