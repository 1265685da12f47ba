"""`gen-worker prefetch`: models on this machine before anybody waits for them."""

import os
import sys
from collections.abc import Mapping

import click

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_ref
from gen_worker.cli.events import form_of
from gen_worker.cli.failure import CANCELED, NO_MODEL, OK, USAGE, USER_CODE, Failure, say_error
from gen_worker.cli.fetching import Outcome, fetched
from gen_worker.cli.project import Project, find_project, project_options, survey_of
from gen_worker.cli.settings import read_settings
from gen_worker.cli.table import size
from gen_worker.cli.watching import JsonLines, Watch, watch_on_stderr
from gen_worker.models.errors import ModelError
from gen_worker.models.refs import RefError, meant_by, parse_ref
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted
from gen_worker.settings import Settings
from gen_worker.terminal import printable

_HELP = """Have models on this machine before anybody waits for them: those of an endpoint's functions, or those named.

What is here is left as it is; a download that was cut off goes on where it stopped. REF is `hf:owner/name`,
`cozy:owner/name:tag`, `civitai:ID` or `modelscope:owner/name`; a revision follows as `@main`. Nothing of the endpoint
is set up, no GPU is touched.

`--offline` fetches nothing: it says whether everything is here. `gen-worker cache` shows what is, and removes it.

\b
gen-worker prefetch
gen-worker prefetch hf:stabilityai/sdxl-turbo
gen-worker prefetch --offline --json"""


@click.command("prefetch", cls=Command, help=_HELP, codes=(OK, USER_CODE, USAGE, NO_MODEL, CANCELED))
@click.argument("refs", nargs=-1, metavar="[REF]...", shell_complete=complete_ref)
@project_options
@click.option("--offline", is_flag=True, help="Fetch nothing; a model that is not here is an error.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as JSON lines to stdout.")
def command(refs: tuple[str, ...], config: str | None, module: str | None, offline: bool, as_json: bool) -> int:
    """Have models on this machine before anybody waits for them."""
    from gen_worker.fetch.config import FetchConfig

    if refs and (config or module):
        raise Failure("REF with `--config` or `--module`", "give the models or the endpoint that has them")
    settings = read_settings()
    project = None if refs else find_project(config, module)
    wanted = [_named(ref) for ref in refs] if project is None else _bound(project)
    watch = _watch(settings, as_json)
    if isinstance(watch, _JsonLines):
        watch.tell("prefetch.plan", count=len(wanted))
    elif project is not None and not wanted:
        sys.stderr.write(f"nothing to fetch: no function of `{project.module}` binds a model\n")
    with fetched(wanted, FetchConfig.of(settings, offline=offline), watch) as outcomes:
        failed = sum(isinstance(outcome, ModelError) for outcome in outcomes.values())
        if isinstance(watch, _JsonLines):
            watch.tell("prefetch.done", fetched=len(outcomes) - failed, failed=failed)
        else:
            _say(outcomes)
    return NO_MODEL if failed else OK


def _named(ref: str) -> Wanted:
    """Return the model that a person names."""
    try:
        wanted = parse_ref(ref, tag="prod")
    except RefError as error:
        if meant := meant_by(ref):
            raise Failure(f"`{ref}` is no ref", f"write `{meant}`") from None
        raise Failure(str(error), "`gen-worker prefetch --help` shows what a REF looks like") from None
    if wanted.provider == "tensorhub" and not ref.strip().startswith("cozy:"):
        hint = f"write `hf:{ref}` for Hugging Face, `cozy:{ref}` for the platform's hub, or `modelscope:{ref}`"
        raise Failure(f"`{ref}` does not say where it is from", hint)
    return wanted


def _bound(project: Project) -> list[Wanted]:
    """Return the models of all functions, each once."""
    try:
        survey = survey_of(project)
    except Failure as failure:
        raise Failure(str(failure), failure.hint, code=USER_CODE) from None
    return list(dict.fromkeys(slot.wanted for function in survey.functions for slot in function.slots))


# --- what is printed --------------------------------------------------------------------------------------------------


class _JsonLines(JsonLines):
    """Says of each model, as soon as it is known, whether it is here."""

    def completed(self, wanted: Wanted, snapshot: Snapshot, fetched_bytes: int) -> None:
        """It is here."""
        super().completed(wanted, snapshot, fetched_bytes)
        self.tell("prefetch.ref.ready", wanted, local=snapshot.load_path)

    def failed(self, wanted: Wanted, error: ModelError) -> None:
        """It cannot be had; `reason` is one word for programs."""
        why = {"error": str(error), "hint": error.hint, "reason": error.kind}
        self.tell("prefetch.ref.failed", wanted, **why, retryable=error.retryable)


def _watch(settings: Settings, as_json: bool) -> Watch:
    if as_json:
        return _JsonLines(_print)
    form = form_of(settings.log_format, sys.stderr, os.environ)
    return watch_on_stderr("bar" if form == "bar" else "text")


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(outcomes: Mapping[Wanted, Outcome]) -> None:
    """Say of each model where it is, or why it cannot be had."""
    for wanted, outcome in outcomes.items():
        if isinstance(outcome, ModelError):
            say_error(str(outcome), outcome.hint)
        else:
            snapshot = outcome.snapshot
            sys.stderr.write(f"{printable(wanted.ref)}: {size(snapshot.size)} at {printable(snapshot.load_path)}\n")
