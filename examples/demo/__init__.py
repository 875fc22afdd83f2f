"""`make demo`: thumbnails on a fleet. One node is killed, one frozen, one drained; all come back.

__main__.py    what happens, in order
pictures.py    the photographs: those of a folder, or drawn ones
worker.py      a worker process: makes thumbnails, and writes down each one that it made
callers.py     submits background and foreground jobs; remembers what was promised, and how long it took
processes.py   etcd, the nodes and the workers: start, kill -9, freeze, wake, stop
watcher.py     asks the nodes how the fleet stands
screen.py      the live table; without a terminal, lines
tally.py       promised against made: the tables at the end
"""
