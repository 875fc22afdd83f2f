"""Where two copies of a slot's log part.

A log is described by its history, the (epoch, number of its first entry) of every epoch that wrote in it,
oldest first, and the number of its last entry. In one epoch only one process ever appends (rule 8), so two
logs that both hold an entry (epoch, number) are the same up to it: where they part follows from the
histories alone, whatever was lost or cut in between (rule 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

HISTORY_EPOCHS_MAX: Final = 16  # kept for each slot; logs that part before that are replaced whole

History = Sequence[tuple[int, int]]


def common_number(mine: History, mine_last: int, other: History, other_last: int) -> int | None:
    """The last number up to which both logs are known to be the same.

    0 when they are known to have nothing in common, None when that cannot be told: an epoch that both had
    is not in the histories any more.
    """
    others = {
        epoch: other[index + 1][1] - 1 if index + 1 < len(other) else other_last
        for index, (epoch, _) in enumerate(other)
    }
    for index in range(len(mine) - 1, -1, -1):
        epoch, first = mine[index]
        last = mine[index + 1][1] - 1 if index + 1 < len(mine) else mine_last
        if epoch in others:
            common = min(last, others[epoch])
            if common >= first:
                return common
    begins_mine = not mine or mine[0][1] == 1
    begins_other = not other or other[0][1] == 1
    return 0 if begins_mine and begins_other else None


def epoch_of(history: History, number: int) -> int:
    """The epoch in which an entry was written; 0 when that is not known."""
    for epoch, first in reversed(history):
        if first <= number:
            return epoch
    return 0


def extend(history: list[tuple[int, int]], epoch: int, number: int) -> None:
    """An entry of this epoch is the log's next one. An epoch that wrote nothing leaves no trace."""
    while history and history[-1][1] >= number:
        history.pop()
    if not history or history[-1][0] != epoch:
        history.append((epoch, number))
        if len(history) > HISTORY_EPOCHS_MAX:
            del history[0]


def cut(history: list[tuple[int, int]], number: int) -> None:
    """The log ends with this number now."""
    while history and history[-1][1] > number:
        history.pop()
