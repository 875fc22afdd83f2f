"""The data directory: who may use it, and what it is.

DIR/lock        locked (flock) by the process that uses the directory
DIR/identity    the directory's own id, made once, as JSON; and what binds it to a fleet
DIR/journal/    segments, see journal.py
DIR/map         the map that this node last acted on (rule 15)

A fleet must never count a copy of a directory as the directory: it may lack what the other acknowledged
since. So each start swaps a nonce in etcd for a new one (rule 10). The new one is on disk before the swap,
and the old one until it is known to have succeeded: a crash between leaves several, of which etcd has one.

    next_nonces()  ->  Store.start_directory()  ->  keep_nonce()

A directory that turns out to be a copy, or damaged, gets a new identity and begins with nothing; what was in
its journal is moved aside, not deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

from cluster.server.errors import DirectoryError

FORMAT: Final = 1
# Once it belongs to a fleet: a release that knows nothing of fleets must not use it.
FLEET_FORMAT: Final = 2
# Older nonces, to tell an etcd that went back from a directory that is a copy.
PAST_NONCES_MAX: Final = 32
PAST_IDENTITIES_MAX: Final = 16
_NO_NONCE: Final[dict[str, list[str]]] = {"nonces": [""], "past": []}
_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_REASON: Final = re.compile(r"[a-z]{1,32}")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durably(path: Path, mode: int = 0o777) -> None:
    """Make a directory, and those above it that are missing; its name survives a loss of power."""
    if not path.parent.exists():
        _make_durably(path.parent)
    path.mkdir(mode=mode, exist_ok=True)
    with contextlib.suppress(PermissionError):  # this user need not be able to read what is above
        sync_directory(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small file so that either the old or the new content survives."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def is_nonce(text: str) -> bool:
    """Whether a node may have written this as its nonce."""
    return _NONCE.fullmatch(text) is not None


class Nonces(NamedTuple):
    """For `Store.start_directory`."""

    accepted: tuple[str, ...]  # one of these is in etcd; "" stands for none, before the first start
    new: str
    past: tuple[str, ...]  # were in etcd before


class SavedMap(NamedTuple):
    """A map as it was in etcd."""

    data: bytes
    revision: int
    config: bytes = b""  # the fleet's configuration beside it; empty where an older release saved the map


class DataDirectory:
    """An open and locked data directory."""

    def __init__(self, path: Path, fleet: str | None = None) -> None:
        """`fleet`: the node's, None when it stands alone. Raises DirectoryError when it is in use, foreign,
        of another fleet or not writable."""
        self.path = path
        self.journal_path = path / "journal"
        self._identity_path = path / "identity"
        self._map_path = path / "map"
        self._lock = -1
        try:
            _make_durably(path, mode=0o750)
            self.journal_path.mkdir(mode=0o750, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise DirectoryError(
                f"the data directory {path} cannot be used ({error.strerror}): "
                "give --data-dir a directory that this user may write; under systemd, StateDirectory= in the "
                "unit makes one"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise DirectoryError(
                f"the data directory {path} is in use by process {holder}: "
                "stop that node first, or give this one a --data-dir of its own"
            ) from None
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds all the same
        try:
            self._content = self._load()
            self.identity = UUID(self._content["identity"])
            self._finish_renewal()
            self._check_fleet(fleet)
        except OSError as error:
            self.close()
            raise DirectoryError(
                f"the data directory {path} cannot be written ({error.strerror}): "
                "make room, or give --data-dir another"
            ) from None
        except DirectoryError:
            self.close()
            raise

    def _load(self) -> dict[str, Any]:
        path = self._identity_path
        if not path.exists():
            if any(self.journal_path.iterdir()):
                raise DirectoryError(
                    f"{path} is missing beside a journal: restore it from where the directory came from, "
                    "or give --data-dir an empty directory"
                )
            content: dict[str, Any] = {"format": FORMAT, "identity": str(uuid4())}
            self._save(content)
            return content
        try:
            content = json.loads(path.read_bytes())
            if content["format"] not in (FORMAT, FLEET_FORMAT):
                raise DirectoryError(
                    f"{path} has format {content['format']}, this release knows {FORMAT} and {FLEET_FORMAT}: "
                    "use the release that wrote it"
                )
            UUID(content["identity"])
            if type(content.get("incarnation", 0)) is not int:
                raise ValueError
            if not all(isinstance(text, str) for text in content.get("formerly", ())):
                raise ValueError
            if content["format"] == FLEET_FORMAT:
                nonces = [content["fleet"], *content["nonces"], *content["past"]]
                if not all(isinstance(text, str) for text in nonces) or type(content["slots"]) is not int:
                    raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DirectoryError(
                f"{path} is no identity file: restore it, or give --data-dir another directory"
            ) from None
        assert isinstance(content, dict)
        return content

    def _save(self, content: dict[str, Any]) -> None:
        write_durably(self._identity_path, json.dumps(content).encode() + b"\n")
        self._content = content

    # ---- fleet

    @property
    def fleet(self) -> str | None:
        """The fleet that the directory belongs to, None for none yet."""
        return self._content.get("fleet")

    def _check_fleet(self, fleet: str | None) -> None:
        if self.fleet in (None, fleet):
            return
        if fleet is None:
            raise DirectoryError(
                f"the data directory {self.path} belongs to a node of the fleet {self.fleet}, and others "
                "have copies of its jobs: start it with --etcd and --fleet, or give --data-dir another "
                "directory"
            )
        raise DirectoryError(
            f"the data directory {self.path} belongs to the fleet {self.fleet}, this node is to be in "
            f"{fleet}: correct --fleet, or give --data-dir another directory"
        )

    def bind(self, fleet: str, slots: int, *, jobs: int = 0) -> None:
        """Make it a directory of this fleet, for good. `jobs`: how many the journal has, while the directory
        belongs to no fleet. Raises DirectoryError."""
        self._check_fleet(fleet)
        if self.fleet is None:
            if jobs:
                raise DirectoryError(
                    f"the data directory {self.path} holds {jobs} jobs of a node that stood alone: let it "
                    "finish them first (start it without --etcd, stop it with SIGUSR1), or give --data-dir "
                    "another directory"
                )
            bound = {"format": FLEET_FORMAT, "fleet": fleet, "slots": slots, **_NO_NONCE}
            self._save({**self._content, **bound})
        elif self._content["slots"] != slots:
            raise DirectoryError(
                f"the data directory {self.path} is of a fleet with {self._content['slots']} slots, {fleet} "
                f"has {slots}: correct --fleet or --etcd, or give --data-dir another directory"
            )

    def next_incarnation(self) -> int:
        """The number of this process's start, durable when this returns: larger than all before, also when
        the clock was put back, and not that of another directory's start, which a counter alone would be."""
        incarnation: int = max(self._content.get("incarnation", 0) + 1, time.time_ns() // 1000)
        self._save({**self._content, "incarnation": incarnation})
        return incarnation

    @property
    def nonces(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those of which etcd has one, if it is as this directory left it; and older ones."""
        return tuple(self._content["nonces"]), tuple(self._content["past"])

    @property
    def formerly(self) -> tuple[str, ...]:
        """Identities that it had, oldest first: in a map they stand for what is here no more."""
        return tuple(self._content.get("formerly", ()))

    def next_nonces(self) -> Nonces:
        """Make this start's nonce; it is on disk when this returns. Call it when etcd answers: each call
        leaves one more until keep_nonce()."""
        assert self.fleet is not None, "bind() comes first"
        accepted = tuple(self._content["nonces"])
        new = uuid4().hex
        self._save({**self._content, "nonces": [*accepted, new]})
        return Nonces(accepted, new, tuple(self._content["past"]))

    def keep_nonce(self, nonce: str) -> None:
        """It is in etcd: forget the ones before."""
        past = [*self._content["past"], *self._content["nonces"]]
        past = [text for text in past if text not in ("", nonce)]
        self._save({**self._content, "nonces": [nonce], "past": past[-PAST_NONCES_MAX:]})

    def renew_identity(self, reason: str) -> UUID:
        """Begin with nothing under a new identity: what is here is "copied", or "damaged". The journal is
        moved to DIR/journal.REASON-OLDIDENTITY, for people; the saved map stays. The journal must be closed.
        """
        if "aside" not in self._content:
            self.condemn(reason)
        self.identity = UUID(self._content["identity"])
        self._finish_renewal()
        return self.identity

    def condemn(self, reason: str) -> None:
        """The first half of renew_identity, while the journal is still open: whatever happens to this
        process, the next start does not count what is here. `identity` stays what it was until then."""
        assert _REASON.fullmatch(reason), reason
        identity = uuid4()
        content = {**self._content, "identity": str(identity)}
        content["aside"] = f"journal.{reason}-{self.identity.hex}"
        if reason != "copied":  # then another directory has that identity
            content["formerly"] = [*self.formerly, self.identity.hex][-PAST_IDENTITIES_MAX:]
        if self.fleet is not None:
            content.update(_NO_NONCE)
        # First the name, then the content: a crash between must not leave the old name with nothing.
        self._save(content)

    def _finish_renewal(self) -> None:
        """Also after a crash in the middle of it."""
        if "aside" not in self._content:
            return
        aside = self.path / self._content["aside"]
        if not aside.exists():
            self.journal_path.rename(aside)
        self.journal_path.mkdir(mode=0o750, exist_ok=True)
        sync_directory(self.path)
        self._save({name: value for name, value in self._content.items() if name != "aside"})

    # ---- the map

    def save_map(self, data: bytes, revision: int, config: bytes = b"") -> None:
        """Keep the map that the node acts on from now on; durable when this returns. It blocks for two
        fsyncs: call it in a thread, one at a time. `config` is for `gearfleet fleet restore`."""
        head = {
            "format": FORMAT,
            "revision": revision,
            "checksum": zlib.crc32(data),
            "config": config.decode(),
        }
        write_durably(self._map_path, json.dumps(head).encode() + b"\n" + data)

    def load_map(self) -> SavedMap | None:
        """The map that was saved last, None when there was none. Raises DirectoryError when it is damaged."""
        try:
            line, _, data = self._map_path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DirectoryError(
                f"{self._map_path} cannot be read ({error.strerror}): correct its permissions, or the disk"
            ) from None
        try:
            head = json.loads(line)
            if head["format"] == FORMAT and head["checksum"] == zlib.crc32(data):
                return SavedMap(data, int(head["revision"]), head.get("config", "").encode())
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise DirectoryError(
            f"{self._map_path} is damaged, and with it perhaps more of the disk: give --data-dir an empty "
            "directory, and the others bring the jobs"
        )

    def hold_lock(self) -> bool:
        """Lock the directory anew if its lock file is gone; false when another process was faster. Raises
        OSError. It is for one thread, while the directory is open."""
        path = self.path / "lock"
        held = os.fstat(self._lock)
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino):
                return True
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            os.close(lock)
            return False
        os.close(self._lock)
        self._lock = lock
        return True

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = -1
