"""Fleets under a seeded dice, in one thread and under virtual time: `python -m chaos_tests.sim --help`.

worlds.py     what a world is: run(seed)
turns/        world "turns": real Nodes, one turn at a time; the shell around them is a few lists
shell/        world "shell": whole real servers, each in an event loop of its own
shrink.py     the shortest history that still fails
hunt.py       many seeds, in several processes
seeds.txt     every seed that ever failed
mutations.py  defects put in on purpose, each of which has to be found
"""
