"""A client and a worker of others: PHP's gearman extension, which is libgearman, in processes of their own.

They know nothing of fleets: the client submits to the first server that it reaches, the worker asks all of
them. Each writes a history of its own, on the clock that all processes of the machine share.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.machine import need_command, needs_php_gearman
from tests.support.node import ServerProcess

_COMMON = r"""
[, $path, $function, $servers, $name, $period_ms] = $argv;
$file = fopen($path, 'ab');
$began = hrtime(true) / 1e9;
fwrite($file, "\n" . json_encode(['began' => $began]) . "\n");
function tell(array $event) {
    global $file, $began;
    fwrite($file, json_encode(['at' => round(hrtime(true) / 1e9 - $began, 6)] + $event) . "\n");
}
"""

_CLIENT = r"""
function connected() {
    global $servers;
    // libgearman does not hear a second server after a first one that refuses: so one at a time.
    for (;; usleep(50000)) {
        foreach (explode(',', $servers) as $server) {
            $client = new GearmanClient();
            $client->setTimeout(5000);
            try {
                $client->addServer(...explode(':', $server));
                return $client;
            } catch (GearmanException $error) { }
        }
    }
}
$client = connected();
for ($call = 1; ; $call++) {
    [$method, $priority] = [['doBackground', 'normal'], ['doHighBackground', 'high'],
                            ['doLowBackground', 'low']][$call % 3];
    $unique = "$name-" . getmypid() . "-$call";
    tell(['kind' => 'submit', 'key' => "$function/$unique", 'call' => $call, 'priority' => $priority]);
    $handle = @$client->$method($function, 'stock', $unique);
    if ($client->returnCode() === GEARMAN_SUCCESS) {
        tell(['kind' => 'ack', 'call' => $call, 'handle' => $handle]);
    } else {
        // Also a refusal: libgearman may have tried another server before.
        tell(['kind' => 'unknown', 'call' => $call, 'text' => (string) $client->error()]);
        $client = connected();
    }
    usleep((int) $period_ms * 1000);
}
"""

_WORKER = r"""
$worker = new GearmanWorker();
foreach (explode(',', $servers) as $server) { $worker->addServer(...explode(':', $server)); }
$worker->setTimeout(1000);
$worker->addFunction($function, function (GearmanJob $job) use ($function, $name, $period_ms) {
    $about = ['key' => $function . '/' . $job->unique(), 'worker' => $name, 'handle' => $job->handle()];
    tell(['kind' => 'run'] + $about);
    usleep((int) $period_ms * 1000);
    tell(['kind' => 'done'] + $about);
    return 'done';
});
for (;;) {
    if (!@$worker->work() && $worker->returnCode() !== GEARMAN_TIMEOUT) { usleep(50000); }
}
"""


def need_stock() -> None:
    """Skip where there is no such client."""
    mark = needs_php_gearman().mark
    if mark.args[0]:
        pytest.skip(mark.kwargs["reason"])


class StockProcess(ServerProcess):
    """One of the two, from its making to `kill`."""

    def __init__(
        self, code: str, history: Path, function: str, servers: Sequence[str], name: str, period_ms: int
    ) -> None:
        super().__init__()
        self.history = history
        command = [need_command("php"), "-r", _COMMON + code, "--"]
        self._spawn([*command, str(history), function, ",".join(servers), name, str(period_ms)], os.environ)


def stock_client(history: Path, function: str, servers: Sequence[str], *, period_ms: int) -> StockProcess:
    """Submits background jobs of all priorities, each with a key of its own, one after the other."""
    return StockProcess(_CLIENT, history, function, servers, "stock", period_ms)


def stock_worker(
    history: Path, function: str, servers: Sequence[str], name: str, *, job_ms: int
) -> StockProcess:
    """Runs them, one at a time."""
    return StockProcess(_WORKER, history, function, servers, name, job_ms)
