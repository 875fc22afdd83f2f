"""Why a node does not start. Each message says what happened and what to do next."""


class StartError(Exception):
    """The node cannot start as it was told to."""


class DirectoryError(StartError):
    """The data directory cannot be used."""


class JournalDamaged(StartError):
    """Acknowledged jobs would be missing from what can be read."""
