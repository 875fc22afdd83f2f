"""Everything is in pyproject.toml, but for one choice: GEARFLEET_COMPILE=1 pip install '.[server]'
compiles the rooms of the hot path with mypyc. It is the same code, only faster; it needs a C compiler and
Python's headers."""

import os

from setuptools import setup

HOT = [
    "cluster/wire/packets.py",
    "cluster/wire/encode.py",
    "cluster/wire/decode.py",
    "cluster/jobs/job.py",
    "cluster/jobs/function.py",
    "cluster/jobs/worker.py",
    "cluster/jobs/ledger.py",
    "cluster/replication/entries.py",
    "cluster/replication/log.py",
    "cluster/replication/history.py",
    "cluster/replication/replica.py",
    "cluster/replication/replicator.py",
    "cluster/node/connection.py",
    "cluster/node/context.py",
    "cluster/node/client.py",
    "cluster/node/worker.py",
    "cluster/node/node.py",
    "cluster/node/forward.py",
    "cluster/node/fleet.py",
    "cluster/jobs/timers.py",
    "cluster/server/turns.py",
    "cluster/server/peer.py",
    "cluster/server/plain.py",
    "cluster/server/server.py",
]

# The checks of `make lint` are for there; here the libraries that the other rooms use may be missing.
OPTIONS = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]

if os.environ.get("GEARFLEET_COMPILE") != "1":
    setup()
else:
    try:
        from mypyc.build import mypycify
    except ImportError:  # the build front end asks what is needed before it installs that
        setup(setup_requires=["mypy>=1.10"])
    else:
        opt_level = os.environ.get("MYPYC_OPT_LEVEL", "3")  # 0 builds in half the time: for tests
        setup(setup_requires=["mypy>=1.10"], ext_modules=mypycify([*OPTIONS, *HOT], opt_level=opt_level))
