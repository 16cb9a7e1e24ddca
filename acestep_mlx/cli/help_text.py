"""The shape of `--help`: many options in groups, examples at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


def examples(*lines: str) -> str:
    """The end of a command's help; click keeps the lines as they are."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


class Grouped(click.Command):
    """A command whose options are listed in groups: title → their names. The last group takes the rest, the
    first `--help`."""

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]], **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Command`."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in self.groups}
        first, *_, last = sections
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            own = (title for title, names in self.groups.items() if parameter.name in names)
            if record is not None:
                sections[first if "--help" in parameter.opts else next(own, last)].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
