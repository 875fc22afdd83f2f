"""`make demo`: thumbnails of photographs by several worker processes, and a kill -9 in the middle.

__main__.py    what happens, in order
pictures.py    the photographs: those of a folder, or drawn ones
worker.py      a worker process: makes thumbnails, and writes down each one that it made
callers.py     submits background and foreground jobs, and remembers what was promised
processes.py   the node and the workers: start, kill -9, start again, stop
tally.py       promised against made: the table at the end
"""
