"""The client and worker library: what it promises, against real servers and against servers that misbehave.

fake_server.py            a server whose every answer the test decides
test_interoperability.py  everything once, against gearmand and against the node
test_failover.py          clients whose servers die, fall silent, refuse
test_worker.py            workers whose servers do
test_processes.py         forks: prefork workers, and clients used after a fork
test_stub.py              the client for users' own tests
"""
