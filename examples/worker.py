"""Do jobs until Ctrl-C or SIGTERM: python examples/worker.py [SERVERS]"""

import sys

from client_ha import HAWorker, JobContext

servers = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:4730"
worker = HAWorker(servers, concurrency=4)


@worker.task("count_words", timeout_seconds=60)
def count_words(job: JobContext) -> str:
    """What it raises, such as UnicodeDecodeError, reaches the client as JobException."""
    lines = job.text.splitlines()
    words = 0
    for number, line in enumerate(lines, 1):
        words += len(line.split())
        job.progress(number, len(lines))
    return str(words)


worker.run()
