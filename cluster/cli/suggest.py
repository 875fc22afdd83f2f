"""What somebody meant who mistyped a word: one rule for commands, choices and the names of settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

import click

# As similar as this, on difflib's scale from 0 to 1: one or two slips in a short word.
SIMILARITY_MIN: Final = 0.6


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one, None when none is like it."""
    by_fold = {name.lower().replace("-", "_"): name for name in known}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), by_fold, n=1, cutoff=SIMILARITY_MIN)
    return by_fold[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence to put behind an error, with a space before it; empty when no word is near."""
    found = nearest(word, known)
    return f" Did you mean {found!r}?" if found is not None else ""


class SuggestingGroup(click.Group):
    """Commands of which the nearest is named when there is none of that name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if self.get_command(ctx, args[0]) is not None:
                raise
            text = error.message + did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(text, ctx) from None


class SuggestingChoice(click.Choice[str]):
    """A choice of words of which the nearest is named when the word is none of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message + did_you_mean(str(value), self.choices), param, ctx)
