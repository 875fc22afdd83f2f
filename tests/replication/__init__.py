"""Entries as bytes, slots and groups."""
