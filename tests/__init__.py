"""Tests, mirrored by room; `support` is what they share."""
