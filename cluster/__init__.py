"""The Gearfleet job server. Start reading at ARCHITECTURE.md beside this file."""

__version__ = "0.1.0"
