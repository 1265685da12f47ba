"""What all commands have in common: the shape of their help."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from gen_worker.cli.failure import MEANINGS


class Command(click.Command):
    """A command whose help ends with what its exit codes mean."""

    meanings: Mapping[int, str] = MEANINGS

    def __init__(self, *args: Any, codes: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.codes = codes

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        if self.codes:
            with formatter.section("Exit codes"):
                formatter.write_dl([(str(code), self.meanings[code]) for code in self.codes])
