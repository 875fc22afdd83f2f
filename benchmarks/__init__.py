"""Gearfleet side by side with gearmand, on this machine, with one command.

    python -m benchmarks throughput | latency | memory | million | kills | fleet | quick     (--help for each)

    servers.py      what is measured: a node at each durability, gearmand with each of its settings
    generator.py    the load: one process, raw sockets, packets encoded beforehand, no client library
    load.py         starts generators at the same instant and adds up what they saw
    throughput.py   jobs per second, in each direction
    latency.py      one job in flight: what a single caller waits
    memory.py       bytes of memory that a queued job takes
    million.py      a million queued jobs: does a submit still take as long, how long is a restart
    kills.py        kill -9 under load, again and again: is an acknowledged job ever lost
    fleet.py        a whole fleet, and what befalls it: each event beside its bar (fleet_load.py,
                    fleet_generator.py: its load)
    report.py       medians, ratios to gearmand in the same run, the commit

Every server is measured by the same generator in the same run, in turns. The generator shares the machine
with the server: where it was the slower of the two, the table says so, and the true ratio may be further
from 1.
"""
