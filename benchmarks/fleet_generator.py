"""Background submits to several nodes from one process; see generator.py. Run by benchmarks.fleet.

    python -m benchmarks.fleet_generator HOST:PORT,HOST:PORT [--routed] ...

Each connection goes to the next node; with --routed, one connection per node has the jobs whose slots that
node leads, as HAClient would send them. Prints its figures as JSON.
"""

import argparse
import json
import os
import select
import sys
import time
from collections import Counter, defaultdict

from benchmarks.fleet_load import slot_of
from benchmarks.generator import Client, encode_submits
from client_ha.slot_map import SlotMap, parse_map
from cluster.wire import packets, request
from tests.support.peer import Peer

FUNCTION = "bench"
SECONDS_MAX = 120.0


def fleet_map(host: str, port: int) -> SlotMap:
    """The map, as this node tells it."""
    with Peer(host, port) as peer:
        peer.send(packets.OPTION_REQ, b"gearfleet")
        peer.expect(packets.OPTION_RES)
        peer.send(packets.GET_MAP)
        found, _ = parse_map(peer.expect(packets.MAP_RES))
    assert found is not None, "no fleet"
    return found


def routed_blocks(found: SlotMap, jobs: int, prefix: str, payload: bytes) -> dict[tuple[str, int], bytes]:
    """The submits for each node, in one block each."""
    blocks: dict[tuple[str, int], list[bytes]] = defaultdict(list)
    for number in range(jobs):
        unique = f"{prefix}{number:08x}"
        node = found.primary(slot_of(unique, FUNCTION))
        assert node is not None, "a slot without a primary"
        assert node.server is not None
        blocks[node.server.host, node.server.port].append(
            request(packets.SUBMIT_JOB_BG, FUNCTION.encode(), unique.encode(), payload)
        )
    return {address: b"".join(block) for address, block in blocks.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers")
    parser.add_argument("--routed", action="store_true")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=64, help="per connection")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--payload-bytes", type=int, default=64)
    options = parser.parse_args()
    nodes = [
        (host, int(port)) for host, _, port in (each.partition(":") for each in options.servers.split(","))
    ]
    payload = b"x" * options.payload_bytes
    prefix = f"{os.getpid():06x}{time.monotonic_ns() & 0xFFFFFFFF:08x}-"
    poller = select.epoll()
    clients: dict[int, Client] = {}
    if options.routed:
        blocks = routed_blocks(fleet_map(*nodes[0]), options.jobs, prefix, payload)
        for address, block in blocks.items():
            size = len(
                request(packets.SUBMIT_JOB_BG, FUNCTION.encode(), f"{prefix}{0:08x}".encode(), payload)
            )
            client = Client(address, poller, block, size, options.in_flight)
            clients[client.socket.fileno()] = client
    else:
        for number in range(options.clients):
            share = options.jobs // options.clients + (number < options.jobs % options.clients)
            block, size = encode_submits(
                packets.SUBMIT_JOB_BG, FUNCTION.encode(), f"{prefix}{number:02x}".encode(), share, payload
            )
            client = Client(nodes[number % len(nodes)], poller, block, size, options.in_flight)
            clients[client.socket.fileno()] = client
    begun = time.monotonic()
    for client in clients.values():
        client.begin()
    done = 0
    while done < options.jobs and time.monotonic() < begun + SECONDS_MAX:
        for descriptor, event in poller.poll(0.5):
            if event & select.EPOLLOUT:
                clients[descriptor].flush()
            if event & ~select.EPOLLOUT:
                done += clients[descriptor].on_readable()
    seconds = time.monotonic() - begun
    waits_us: Counter[int] = Counter()
    for client in clients.values():
        waits_us += client.waits_us
    ordered = sorted(waits_us.elements())
    print(
        json.dumps(
            {
                "jobs": done,
                "seconds": seconds,
                "rate": done / seconds,
                "errors": sum(client.errors for client in clients.values()) + (options.jobs - done),
                "p50_us": ordered[len(ordered) // 2],
                "p99_us": ordered[int(len(ordered) * 0.99)],
                "max_us": ordered[-1],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
