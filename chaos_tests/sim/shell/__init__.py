"""World "shell": whole servers, clients and workers in one thread, by virtual time and one seed.

Real is all of cluster/ and client_ha/. What stands for the system below:

kernel.py        time, processes with event loops of their own, the dice that choose whose callback runs
network.py       connections, and what goes wrong with them
disk.py          disks with a page cache that power loss empties; the journal's thread
replaced.py      the list of names that are put in place: time, dice, os, grpc.aio, the number of slots
grpc_aio.py      gRPC over the network
etcd.py, etcd_cluster.py, etcd_members.py    etcd: state, cluster, processes

A run of it:

fleet.py         nodes over their starts, and what their disks must hold
users.py, workload.py    stock clients and workers; HAClients and HAWorkers
troubles.py, restoring.py    what goes wrong, by schedule
run.py           one seed: troubles, rules after every few callbacks, healing, judgement
"""
