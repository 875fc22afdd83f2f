"""Files that an operator names in the settings."""

from __future__ import annotations

from pathlib import Path

from cluster.server.errors import StartError


def require_readable(**paths: Path | None) -> None:
    """Raise StartError for the first that cannot be read: what OpenSSL says of it does not name the file."""
    for name, path in paths.items():
        if path is None:
            continue
        try:
            path.open("rb").close()
        except OSError as error:
            raise StartError(
                f"{name} {path} cannot be read ({error.strerror}): correct the path, or its permissions"
            ) from None
