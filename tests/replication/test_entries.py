"""Entries: what was encoded is what is decoded; anything else is DamagedEntry and no other exception."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.replication import entries
from cluster.replication.entries import DamagedEntry, Entry, JobRecord, decode

slots = st.integers(0, 0xFFFF)
epochs = st.integers(0, 2**32 - 1)
numbers = st.integers(0, 2**64 - 1)
kinds = st.sampled_from(sorted(entries.KINDS))
names = st.binary(max_size=40).map(lambda name: name.replace(b"\0", b"."))
cron_fields = st.tuples(*[st.sampled_from([b"*", b"1", b"*/5", b"1-5,7"])] * 5)
records = st.builds(
    JobRecord,
    handle=names,
    function=names,
    key_rest=st.binary(max_size=80),
    payload=st.binary(max_size=200),
    priority=st.integers(0, 2),
    retries=st.integers(0, 2**32 - 1),
    deliveries=st.integers(0, 2**32 - 1),
    due_seconds=st.integers(0, 2**40),
    assigned=st.booleans(),
    reducer=st.none() | st.binary(max_size=1023),
    cron=st.none() | cron_fields,
)
ENTRY = entries.encode(entries.JOB, 7, 3, 11, JobRecord(b"H:n:7.3.1", b"f", b"u", b"payload", 1).encode())


@settings(max_examples=200, deadline=None)
@given(
    kind=kinds,
    slot=slots,
    epoch=epochs,
    number=numbers,
    body=st.binary(max_size=300),
    before=st.binary(max_size=30),
)
def test_what_was_encoded_is_what_is_decoded_at_any_offset(
    kind: int, slot: int, epoch: int, number: int, body: bytes, before: bytes
) -> None:
    data = before + entries.encode(kind, slot, epoch, number, body)
    for view in (data + b"behind", memoryview(data + b"behind")):
        assert decode(view, len(before)) == (Entry(kind, slot, epoch, number, body), len(data))


@settings(max_examples=100, deadline=None)
@given(slot=slots, epoch=epochs, number=numbers, handle=names, priority=st.integers(0, 2), body=st.binary())
def test_the_short_ways_write_the_same_bytes(
    slot: int, epoch: int, number: int, handle: bytes, priority: int, body: bytes
) -> None:
    assert entries.encode_submitted(slot, epoch, number, priority, handle, body) == entries.encode(
        entries.SUBMITTED, slot, epoch, number, bytes([priority]) + handle + b"\0" + body
    )
    assert entries.encode_done(slot, epoch, number, entries.TIMED_OUT, handle) == entries.encode(
        entries.DONE, slot, epoch, number, bytes([entries.TIMED_OUT]) + handle
    )


def test_the_bytes_are_these() -> None:
    # The format is on disks: a change of it is a new version
    data = entries.encode_submitted(0x102, 0x3040506, 7, 1, b"H", b"f\0u\0p")
    assert data.hex(" ", 4) == ("d3bbb09a 00000018 01010102 03040506 00000000 00000007 01480066 00750070")


@pytest.mark.parametrize("length", range(len(ENTRY)))
def test_every_truncation_is_damage(length: int) -> None:
    with pytest.raises(DamagedEntry):
        decode(ENTRY[:length], 0)


@pytest.mark.parametrize("byte", range(len(ENTRY)))
def test_every_flipped_bit_is_damage(byte: int) -> None:
    for bit in range(8):
        damaged = bytearray(ENTRY)
        damaged[byte] ^= 1 << bit
        with pytest.raises(DamagedEntry):
            decode(bytes(damaged) + ENTRY, 0)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=100), offset=st.integers(0, 120))
def test_any_other_bytes_are_damage(data: bytes, offset: int) -> None:
    with pytest.raises(DamagedEntry):
        decode(data, offset)


@pytest.mark.parametrize(("version", "kind"), [(0, entries.JOB), (2, entries.JOB), (1, 0), (1, 15), (1, 255)])
def test_an_entry_of_a_newer_release_says_so(version: int, kind: int) -> None:
    rest = entries._pack(entries.LENGTH_BASE, version, kind, 1, 1, 1)
    with pytest.raises(DamagedEntry, match="newer release"):
        decode(entries.crc32(rest).to_bytes(4, "big") + rest, 0)


# ---- bodies


@settings(max_examples=300, deadline=None)
@given(record=records)
def test_the_whole_state_of_a_job_comes_back(record: JobRecord) -> None:
    assert JobRecord.decode(record.encode()) == record


@settings(max_examples=100, deadline=None)
@given(record=records, data=st.data())
def test_a_job_s_state_that_is_cut_short_is_damage_or_has_a_shorter_payload(
    record: JobRecord, data: st.DataObject
) -> None:
    body = record.encode()
    cut = body[: data.draw(st.integers(0, len(body)))]
    if len(cut) < len(body) - len(record.payload):
        with pytest.raises(DamagedEntry):
            JobRecord.decode(cut)
    else:
        assert record.payload.startswith(JobRecord.decode(cut).payload)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=120))
def test_any_bytes_are_a_job_s_state_or_damage(body: bytes) -> None:
    try:
        record = JobRecord.decode(body)
    except DamagedEntry:
        return
    assert isinstance(record, JobRecord)


@pytest.mark.parametrize(
    ("written", "read"), [((b" 5 ", b"", b"  ", b"*", b"1-3"), (b"5", b"*", b"*", b"*", b"1-3"))]
)
def test_a_schedule_s_fields_are_kept_without_blanks(
    written: tuple[bytes, ...], read: tuple[bytes, ...]
) -> None:
    record = JobRecord(b"h", b"f", b"", b"", 1, cron=written)
    assert JobRecord.decode(record.encode()).cron == read


@settings(max_examples=50, deadline=None)
@given(limits=st.tuples(*[st.integers(0, 2**62)] * 3), function=names)
def test_limits_come_back(limits: tuple[int, int, int], function: bytes) -> None:
    body = entries.encode_limits(*limits, function)
    assert entries.decode_limits(body) == (*limits, function)
    for length in range(24):
        with pytest.raises(DamagedEntry):
            entries.decode_limits(body[:length])
