"""Programs to try and to copy from.

demo/            `make demo`: thumbnails, worker processes and a kill -9
client.py        submit a job and wait; queue one; a thousand at once
worker.py        do jobs, report progress
client.php       the same from PHP with php-gearman, which knows nothing of Gearfleet
worker.pl        the same from Perl with Gearman::Worker
"""
