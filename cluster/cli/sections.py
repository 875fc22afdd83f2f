"""Options under headings, for commands that have many."""

from typing import Any

import click


class SectionOption(click.Option):
    """An option that is listed under a heading."""

    def __init__(self, *arguments: Any, section: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.section = section


class SectionCommand(click.Command):
    """A command that lists its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "") or "Other", []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                # Long options on a line of their own leave 80 columns enough room for the text.
                formatter.write_dl(records, col_max=26)
