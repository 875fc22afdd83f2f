"""What `make proto` makes of proto/: never edited by hand, committed, so that nobody needs the compiler.

Messages only. The two services are registered by hand in peers.py and control.py: generated service code
insists on the grpcio that made it, or a newer one.
"""
