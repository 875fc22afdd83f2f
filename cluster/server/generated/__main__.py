"""make proto: compile proto/*.proto into this directory; with --check only say whether that is due."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
SOURCES: Final = HERE.parents[2] / "proto"
# Names in protobuf's registry are process-wide: ours are told from other packages' by a directory.
REGISTERED_AS: Final = "gearfleet"

# Generated code refuses a protobuf that is older than its compiler, or two major versions newer. What
# these messages use has not changed since 5.28, so the question is left out; test_generated.py tells.
_VERSION_CHECK: Final = re.compile(
    r"^from google\.protobuf import runtime_version as _runtime_version\n"
    r"|^_runtime_version\.ValidateProtobufRuntimeVersion\([^)]*\)\n"
    r"|^# Protobuf Python Version: .*\n",
    re.MULTILINE,
)


def generate() -> dict[str, str]:
    """File name -> what belongs into it."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as directory:
        arguments = [
            "protoc",
            f"-I{REGISTERED_AS}={SOURCES}",
            f"--python_out={directory}",
            f"--pyi_out={directory}",
            *(f"{REGISTERED_AS}/{path.name}" for path in sorted(SOURCES.glob("*.proto"))),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc did not take proto/: see its message above")
        made = sorted((Path(directory) / REGISTERED_AS).iterdir())
        return {path.name: _VERSION_CHECK.sub("", path.read_text("utf-8")) for path in made}


def stale() -> list[str]:
    """Names of files that are missing, left over or not what `generate` makes."""
    wanted = generate()
    found = {path.name: path.read_text("utf-8") for path in HERE.glob("*_pb2.py*")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        names = stale()
        if names:
            raise SystemExit(f"not what proto/ says: {', '.join(names)}; run make proto and commit")
        return
    files = generate()
    for path in HERE.glob("*_pb2.py*"):
        path.unlink()
    for name, text in files.items():
        (HERE / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
