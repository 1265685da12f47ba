"""Ask a person before a command ends more than it names."""

import sys

import click

from gen_worker.cli.failure import Failure

yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def agree(question: str, *, yes: bool) -> None:
    """Return once a person wants it; raise `Failure` where nobody can be asked, `click.Abort` for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(f"nothing was done, as nobody can be asked: {question}", "run it again with `--yes`")
    click.confirm(question, abort=True, err=True)
