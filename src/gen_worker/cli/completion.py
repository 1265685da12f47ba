"""`gen-worker completion`: what a shell needs to complete our commands."""

import click
from click.shell_completion import get_completion_class

from gen_worker.cli.program import commands

_HELP = """Print the script that completes `gen-worker` in SHELL: bash, zsh or fish.

\b
bash: eval "$(gen-worker completion bash)"    in ~/.bashrc
zsh:  eval "$(gen-worker completion zsh)"     in ~/.zshrc
fish: gen-worker completion fish | source     in ~/.config/fish/config.fish"""


@click.command("completion", help=_HELP)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell."""
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(commands, {}, "gen-worker", "_GEN_WORKER_COMPLETE").source())
