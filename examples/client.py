"""Submit jobs in the three usual ways: python examples/client.py [SERVERS]

Needs examples/worker.py, running.
"""

import sys

from client_ha import HAClient, JobException

servers = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:4730"

with HAClient(servers) as client:
    # One job, and its result. Its progress is heard while it runs.
    job = client.submit(
        "count_words",
        "the quick brown fox jumps over the lazy dog\nthe end\n",
        on_status=lambda _, done, lines: print(f"line {done} of {lines}"),
    )
    print("words:", job.result(timeout=30).decode())

    # A job for later: when this returns, the node has it on disk. A second one of its key joins the first.
    job = client.submit("count_words", "for later", unique="letter-42", background=True)
    print("queued as", job.handle)

    # Many jobs, at most 50 under way; what fails does not stop the others.
    texts = [f"{'word ' * number}" for number in range(1, 101)] + [b"\xff"]
    total = failed = 0
    for job in client.map("count_words", texts, in_flight=50):
        try:
            total += int(job.result())
        except JobException:
            failed += 1
    print(f"words in {len(texts)} texts: {total}, {failed} failed")
