"""A drill: load, faults, and a verdict on what the fleet promised meanwhile."""
