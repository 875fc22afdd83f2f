"""Why a node does not start. Each message says what happened and what to do next."""


class StartError(Exception):
    """The node cannot start as it was told to."""


class DirectoryError(StartError):
    """The data directory cannot be used."""


class JournalDamaged(StartError):
    """Acknowledged jobs would be missing from what can be read."""


class StoreError(Exception):
    """etcd, or what is in it, is not as a node needs it."""


class Unreachable(StoreError):
    """No answer: try again. A write may have happened, or may still happen."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        """`timed_out`: the connection is there, as far as one can tell, but silent."""
        super().__init__(message)
        self.timed_out = timed_out


class Denied(StoreError):
    """etcd answers, and refuses: an operator has to change something."""


class BadContent(StoreError):
    """A key holds what no node writes."""


class Regressed(StoreError):
    """etcd has forgotten what it had told before: it was wiped, or restored from a backup, or is another."""


class NameTaken(StoreError):
    """Two nodes have one name."""


class Superseded(StoreError):
    """A later start of the same data directory is registered."""
