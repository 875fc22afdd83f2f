"""Slots, epochs, entries, and when something is committed. Pure.

entries.py  one change of job state as bytes: what is journalled and replicated, encoded once
log.py      slots with their epochs and numbers; the groups in which entries are committed
"""

from cluster.replication.log import SLOT_COUNT, Group, Log, Slot, slot_of

__all__ = ["SLOT_COUNT", "Group", "Log", "Slot", "slot_of"]
