"""Clients and workers for a Gearfleet fleet, or for any Gearman servers."""

from client_ha.addresses import Server, parse_servers
from client_ha.client import HAClient
from client_ha.context import JobContext
from client_ha.errors import (
    CallerMistake,
    ClientClosed,
    GearfleetError,
    InvalidArgument,
    JobError,
    JobException,
    JobFailed,
    JobLost,
    JobTimeout,
    NoServerAvailable,
    NotAllAcknowledged,
    Retry,
    ServerBusy,
    ServerError,
    ServerRefused,
    TooManyJobs,
    WrongThread,
)
from client_ha.job import AsyncJob, Job, JobStatus
from client_ha.timing import Timing
from client_ha.worker import HAWorker

__all__ = [
    "AsyncJob",
    "CallerMistake",
    "ClientClosed",
    "GearfleetError",
    "HAClient",
    "HAWorker",
    "InvalidArgument",
    "Job",
    "JobContext",
    "JobError",
    "JobException",
    "JobFailed",
    "JobLost",
    "JobStatus",
    "JobTimeout",
    "NoServerAvailable",
    "NotAllAcknowledged",
    "Retry",
    "Server",
    "ServerBusy",
    "ServerError",
    "ServerRefused",
    "Timing",
    "TooManyJobs",
    "WrongThread",
    "parse_servers",
]
