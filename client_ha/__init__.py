"""Clients and workers for a Gearfleet fleet, or for any Gearman servers.

    client.py, async_client.py    HAClient, AsyncHAClient: the API of those who submit
    worker.py, async_worker.py    HAWorker, AsyncHAWorker: the API of those who work
    testing.py                    a client for users' own tests, without a server
    errors.py                     everything that can go wrong, as one tree
    job.py, context.py            a job as its submitter sees it; a job in a task's hands

and below them, in the order a job travels: flight.py and cron.py (one submission), routing.py (which server),
slot_map.py (the fleet's map), engine.py (sent, acknowledged, sent again), cancelling.py, roster.py and
discovery.py (which servers there are), link.py, dialling.py and connection.py (bytes), worker_engine.py
(grabbed, run, delivered), tasks.py (what an end means on the wire), prefork.py (processes), stopping.py
(signals), worker_log.py (what a worker says), log.py (which never raises).
"""

from client_ha.addresses import AddressRemap, Server, parse_servers
from client_ha.async_client import AsyncHAClient
from client_ha.async_worker import AsyncHAWorker
from client_ha.client import HAClient
from client_ha.context import JobContext
from client_ha.discovery import DnsDiscovery, EtcdDiscovery
from client_ha.errors import (
    CallerMistake,
    ClientClosed,
    GearfleetError,
    InvalidArgument,
    JobCancelled,
    JobError,
    JobException,
    JobFailed,
    JobLost,
    JobTimeout,
    NoResult,
    NoServerAvailable,
    NotAllAcknowledged,
    Retry,
    ServerBusy,
    ServerError,
    ServerRefused,
    TooManyJobs,
    WrongThread,
)
from client_ha.job import AsyncJob, BaseJob, Job, JobStatus
from client_ha.timing import Timing
from client_ha.worker import HAWorker
from client_ha.worker_engine import WorkerStats

__all__ = [
    "AddressRemap",
    "AsyncHAClient",
    "AsyncHAWorker",
    "AsyncJob",
    "BaseJob",
    "CallerMistake",
    "ClientClosed",
    "DnsDiscovery",
    "EtcdDiscovery",
    "GearfleetError",
    "HAClient",
    "HAWorker",
    "InvalidArgument",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobException",
    "JobFailed",
    "JobLost",
    "JobStatus",
    "JobTimeout",
    "NoResult",
    "NoServerAvailable",
    "NotAllAcknowledged",
    "Retry",
    "Server",
    "ServerBusy",
    "ServerError",
    "ServerRefused",
    "Timing",
    "TooManyJobs",
    "WorkerStats",
    "WrongThread",
    "parse_servers",
]
