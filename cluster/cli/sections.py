"""Options under headings, for commands that have many."""

from collections.abc import Mapping
from typing import Any

import click


class SectionOption(click.Option):
    """An option that is listed under a heading."""

    def __init__(self, *arguments: Any, section: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


class SectionCommand(click.Command):
    """A command that lists its options under their headings; `sections`: those of plain options, by name."""

    def __init__(self, *arguments: Any, sections: Mapping[str, str] | None = None, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self._sections = sections or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                section = getattr(parameter, "section", "") or self._sections.get(
                    parameter.name or "", "Other"
                )
                sections.setdefault(section, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                # Long options on a line of their own leave 80 columns enough room for the text.
                formatter.write_dl(records, col_max=26)
