"""What all commands have in common: the shape of their help."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from gen_worker.cli.failure import MEANINGS, USAGE, Failure, nearest


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


@click.pass_context
def _or_help(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


class Group(Command, click.Group):
    """A command of commands; without one it prints its help, and for one that it has not it names what is near."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, no_args_is_help=False, invoke_without_command=True, **kwargs)
        self.callback = self.callback and _or_help

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is meant; raise `Failure` for one that is not there."""
        if args[0] not in self.commands:
            near = nearest(args[0], self.commands)
            whole = f"gen-worker {self.name}"
            hint = f"did you mean `{whole} {near}`?" if near else f"`{whole} --help` lists them"
            raise Failure(f"no command `{self.name} {args[0]}`", hint)
        return super().resolve_command(ctx, args)
