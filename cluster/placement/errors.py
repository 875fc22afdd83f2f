"""What can be wrong with a map and with what somebody wants to make of it."""


class PlacementError(Exception):
    """Each message says what is wrong and what to do."""


class IllegalChange(PlacementError):
    """A change that the rules forbid, or that was true of an older map: read again, decide again."""


class BadValue(PlacementError):
    """A value in etcd that nothing can be made of: an operator has to mend it."""


class NotEmpty(PlacementError):
    """A node with data never takes part in making a new fleet (rule 15)."""
