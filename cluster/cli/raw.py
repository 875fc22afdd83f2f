"""Commands that take another program's options: click hands them everything as it was typed.

Their options follow other rules than click's (getopt, boost::program_options), so they are read here.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence

import click


class RawCommand(click.Command):
    """A command whose callback gets all its arguments as a list and returns an exit code."""

    def __init__(self, name: str, run: Callable[[list[str]], int], help: str) -> None:
        super().__init__(name, callback=lambda arguments: run(arguments), help=help, add_help_option=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["arguments"] = list(args)
        return []


class OptionFault(Exception):
    """What was typed does not follow the options' rules."""


def read_options(
    arguments: Sequence[str],
    long: Mapping[str, bool],
    short: Mapping[str, str],
    *,
    suggest: bool = False,
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Read options as boost::program_options does: `--port=1`, `--port 1`, `--po 1`, `-p1`, `-p 1`, `-dp1`.

    `long` says of each long option whether it takes a value, `short` which long option a letter stands for.
    Returns the options in order, as (long name, value), and what is left. Raises OptionFault, with boost's
    own words; `suggest` adds the nearest option.
    """
    found: list[tuple[str, str | None]] = []
    left: list[str] = []
    rest = list(arguments)

    def take(name: str, shown: str) -> str:
        # As boost has it: the next word is the value unless it is an option itself; "-1" and "-x" are values.
        if not rest or _is_option(rest[0], long, short):
            raise OptionFault(f"the required argument for option '{shown}' is missing")
        return rest.pop(0)

    while rest:
        word = rest.pop(0)
        if word == "--":
            left.extend(rest)
            break
        if word.startswith("--"):
            typed, equals, value = word[2:].partition("=")
            name = _long_name(typed, long, suggest=suggest)
            shown = f"--{name}"
            if equals and not value:
                raise OptionFault(
                    f"the argument for option '{shown}' should follow immediately after the equal sign"
                )
            if not long[name]:
                if equals:
                    raise OptionFault(f"option '{shown}' does not take any arguments")
                found.append((name, None))
            elif not equals:
                found.append((name, take(name, shown)))
            else:
                found.append((name, value))
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in short:
                    raise OptionFault(f"unrecognised option '-{letter}'")
                name = short[letter]
                if not long[name]:
                    found.append((name, None))
                    continue
                found.append((name, letters or take(name, f"--{name}")))
                break
        else:
            left.append(word)
    return found, left


def only_once(found: Sequence[tuple[str, str | None]]) -> dict[str, str | None]:
    """The options by name. Raises OptionFault when one was given twice."""
    options: dict[str, str | None] = {}
    for name, value in found:
        if name in options:
            raise OptionFault(f"option '--{name}' cannot be specified more than once")
        options[name] = value
    return options


def _long_name(typed: str, long: Mapping[str, bool], *, suggest: bool) -> str:
    if typed in long:
        return typed
    candidates = [name for name in long if typed and name.startswith(typed)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = [f"'--{name}'" for name in sorted(candidates)]
        raise OptionFault(f"option '--{typed}' is ambiguous and matches {', and '.join(names)}")
    near = difflib.get_close_matches(typed, long, n=1) if suggest else []
    hint = f"; the nearest is '--{near[0]}'" if near else ""
    raise OptionFault(f"unrecognised option '--{typed}'{hint}")


def _is_option(word: str, long: Mapping[str, bool], short: Mapping[str, str]) -> bool:
    if word.startswith("--"):
        typed = word[2:].partition("=")[0]
        return not typed or any(name.startswith(typed) for name in long)
    return word.startswith("-") and word[1:2] in short
