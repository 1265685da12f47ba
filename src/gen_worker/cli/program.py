"""The program that the commands are part of: its help, and what becomes of errors and signals.

Imports no command before it is used, so that `--help` is quick.
"""

import errno
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import click

from gen_worker.cli.command import Command
from gen_worker.cli.failure import CANCELED, MEANINGS, OK, USAGE, Failure, NobodyReads, nearest, say, say_error

BROKEN_PIPE = 141  # what a shell shows for a process that SIGPIPE ended
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

_SECTIONS = {
    "Write an endpoint": {
        "new": "Make a new endpoint: a project with functions, tests and a Dockerfile.",
        "run": "Run one function once, in this process.",
        "validate": "Check that an endpoint can be built and routed.",
    },
    "Serve it": {
        "serve": "Serve an endpoint's functions from supervised child processes.",
        "up": "Work for an orchestrator with this machine's devices.",
        "orchestrator": "Drive workers on this host, with an HTTP API for jobs.",
        "train": "Train what a job spec describes, and go on whatever dies.",
    },
    "Call it": {
        "invoke": "Call a function of a running `gen-worker serve`.",
        "repl": "Keep an endpoint warm and call it line by line.",
    },
    "See what goes on": {
        "top": "Watch a supervisor's devices and jobs, and act on them.",
        "ps": "Show what a supervisor's devices and jobs are doing.",
        "jobs": "List the jobs that ended.",
        "logs": "Show what children printed and the supervisor told.",
        "events": "Show what the supervisor told of itself, its children and its jobs.",
        "stack": "Show where each thread of a device's child is.",
        "postmortem": "Say what children died of.",
    },
    "Step in": {
        "cancel": "Ask one request to end.",
        "kill": "End one request, whatever it does, and nothing else.",
        "restart": "Replace the child process of one device.",
        "drain": "Give devices no more requests, until that is undone.",
        "undrain": "Give drained devices requests again.",
        "quarantine": "Look after the payloads that killed children.",
    },
    "Have models where they are needed": {
        "prefetch": "Have models on this machine before anybody waits for them.",
        "cache": "Look after the models on this machine's disk.",
        "models": "Look after the models of a supervisor's functions.",
    },
    "Set up a host": {
        "doctor": "Look at this host, and say what a worker lacks here.",
        "completion": "Print the completion script of a shell.",
    },
}
_COMMANDS = {name: about for section in _SECTIONS.values() for name, about in section.items()}
_MODULES = {"events": "events_command"}  # where a command is that is not in the module of its name


class _Commands(Command, click.Group):
    """The commands, known by name and one line of help until one is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f"gen_worker.cli.{_MODULES.get(name, name)}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for title, section in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), about) for name, about in section.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            if name in ("discover", "discovery"):
                raise Failure(f"no command `{name}`", f"it is a module: `python -m gen_worker.{name}`")
            near = "cache prune" if name == "prune" else nearest(name, _COMMANDS)
            hint = f"did you mean `gen-worker {near}`?" if near else "`gen-worker --help` lists the commands"
            raise Failure(f"no command `{name}`", hint)
        return name, command, args[1:]


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        import gen_worker

        click.echo(f"gen-worker {gen_worker.__version__}")
        ctx.exit()


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    no_args_is_help=False,
    codes=tuple(MEANINGS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Write an AI endpoint as a Python function or class; run it, serve it, watch it, stop it.

    Results go to stdout, everything else to stderr.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE)


def main() -> NoReturn:
    """Run the command that the process was started with, and end the process with its exit code."""
    _open_missing_streams()
    if "_GEN_WORKER_COMPLETE" in os.environ:  # a shell asks what could come next
        from gen_worker.cli.completion import answer

        answer(commands)
    code = execute(sys.argv[1:])
    _leave_stray_threads(code)
    sys.exit(code)


def execute(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; whatever goes wrong by a person's doing is said on stderr."""
    try:
        code = _run(list(arguments))
        if not sys.stdout.closed:  # the endpoint's code can have closed it
            sys.stdout.flush()
    except (BrokenPipeError, NobodyReads):
        _forget_stdout()
        return BROKEN_PIPE
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        _forget_stdout()
        say_error(f"the output cannot be written: {(error.strerror or str(error)).lower()}")
        return USAGE
    return code


def _run(arguments: list[str]) -> int:
    try:
        with commands.make_context("gen-worker", arguments) as ctx:
            code = commands.invoke(ctx)
    except Failure as failure:
        say_error(str(failure), failure.hint)
        return failure.code
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as problem:
        say_error(*_retold(problem))
        return problem.exit_code
    except (KeyboardInterrupt, click.Abort):
        return CANCELED
    return code if isinstance(code, int) else OK


def _retold(problem: click.ClickException) -> tuple[str, str]:
    """Return what click says in our words, and a hint."""
    ctx = problem.ctx if isinstance(problem, click.UsageError) else None
    hint = f"`{ctx.command_path} --help` says what it takes" if ctx is not None else ""
    if isinstance(problem, click.NoSuchOption):
        option = problem.option_name
        near = nearest(option, problem.possibilities or (), likeness=0.8)
        return f"no option `{option}`", f"did you mean `{near}`?" if near else _meant_by(option, ctx) or hint
    if isinstance(problem, click.MissingParameter) and problem.param is not None:
        named = problem.param.human_readable_name
        if isinstance(problem.param, click.Option):
            named = "`, `".join(problem.param.opts)
        return f"missing {problem.param.param_type_name} `{named}`", hint
    told = problem.format_message().replace("'", "`").rstrip(".")
    return told[:1].lower() + told[1:], hint


def _meant_by(option: str, ctx: click.Context | None) -> str:
    """Return a hint for what a person may want where fields are given and wrote as an option; empty for nothing."""
    command = ctx.command.name if ctx is not None else None
    if command not in ("run", "invoke"):
        return ""
    if option == "--method":
        return "the function is the first word: `gen-worker invoke FUNCTION …`"
    word = option.lstrip("-")
    if option.startswith("--") and word.replace("-", "_").isidentifier():
        return f"fields have no dashes: `{word.replace('-', '_')}=…`"
    return "" if option.startswith("--") else "a value that begins with a dash needs its field: `field=-…`"


def _open_missing_streams() -> None:
    """Open nothing, `/dev/null`, for each of stdin, stdout and stderr that this process was started without."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, descriptor)
            if nowhere != descriptor:
                os.close(nowhere)
            os.set_inheritable(descriptor, True)  # as what is opened first lands there, and stays closed to children
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - as long as the process


def _leave_stray_threads(code: int) -> None:
    """End the process although the endpoint's code left threads running that would keep it for ever."""
    stray = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    if stray:
        say("warning", f"the endpoint left threads running, they end now: {', '.join(stray)}")
        os._exit(code)


def _forget_stdout() -> None:
    """Let nothing more be written to a stdout that nobody reads, as the interpreter would when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
