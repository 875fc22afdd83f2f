"""A node's HTTP port: health for machines that start and stop it, metrics for those that watch it.

port.py      HttpPort: the paths, and the bounds on who asks
health.py    NodeStatus -> whether it lives, whether it serves
metrics.py   NodeStatus and functions -> Prometheus' text
"""

from cluster.http.port import HttpPort

__all__ = ["HttpPort"]
