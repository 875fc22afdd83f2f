"""Where the slots are: the map, who may change it and how, and what it should become.

Reading order: `view` (what a node reads in etcd), `changes` (the one function that makes a swap out of
changes, and refuses illegal ones), `succession` (who takes over), `plan` (what is wanted), `propose` (what a
node should propose now), `encoding` (the values in etcd).
"""

from cluster.placement.changes import (
    Change,
    Enter,
    Forget,
    HandOver,
    Learn,
    Leave,
    Promote,
    TakeOver,
    Touch,
    apply_changes,
    raise_epochs,
)
from cluster.placement.encoding import (
    decode_config,
    decode_map,
    decode_member,
    encode_config,
    encode_map,
    encode_member,
)
from cluster.placement.errors import BadValue, IllegalChange, NotEmpty, PlacementError
from cluster.placement.plan import Plan, plan
from cluster.placement.propose import HAND_OVERS_MAX, MOVES_MAX, Facts, bootstrap, propose
from cluster.placement.succession import takeovers
from cluster.placement.view import (
    PROTOCOL_VERSION,
    FleetConfig,
    FleetMap,
    Member,
    SlotRow,
    Swap,
    View,
    descends,
    holders,
    leads,
    primary_identity,
)

__all__ = [
    "HAND_OVERS_MAX",
    "MOVES_MAX",
    "PROTOCOL_VERSION",
    "BadValue",
    "Change",
    "Enter",
    "Facts",
    "FleetConfig",
    "FleetMap",
    "Forget",
    "HandOver",
    "IllegalChange",
    "Learn",
    "Leave",
    "Member",
    "NotEmpty",
    "PlacementError",
    "Plan",
    "Promote",
    "SlotRow",
    "Swap",
    "TakeOver",
    "Touch",
    "View",
    "apply_changes",
    "bootstrap",
    "decode_config",
    "decode_map",
    "decode_member",
    "descends",
    "encode_config",
    "encode_map",
    "encode_member",
    "holders",
    "leads",
    "plan",
    "primary_identity",
    "propose",
    "raise_epochs",
    "takeovers",
]
