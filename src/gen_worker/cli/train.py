"""`gen-worker train`: the training of a job spec, on this machine."""

import json
import os
from pathlib import Path

import click
import msgspec

from gen_worker.cli.command import Command
from gen_worker.cli.completing import complete_one_place, complete_path
from gen_worker.cli.failure import CANCELED, MEANINGS, OK, USAGE, USER_CODE, Failure, say
from gen_worker.cli.serve import refuse_other_systems
from gen_worker.cli.settings import read_settings
from gen_worker.environment import forget_secrets

_HELP = """Train what a job spec describes, under supervision, as a worker in trainer mode does.

The trainer is imported from the current folder. The process that trains may die of anything: the training goes on from
its last checkpoint. Ctrl-C ends it in order, with one more checkpoint; `--resume` goes on from there.

\b
gen-worker train job.json
gen-worker train job.json --resume --output-dir out
tail -f .gen-worker-run/training/REQUEST/metrics/events.jsonl"""
_MEANINGS = {
    **MEANINGS,
    OK: "the training is complete",
    USER_CODE: "the training failed",
    USAGE: "wrong usage, or a job spec that is none",
    CANCELED: "canceled; 143 after SIGTERM",
}


class _Train(Command):
    meanings = _MEANINGS


@click.command("train", cls=_Train, help=_HELP, codes=(OK, USER_CODE, USAGE, CANCELED))
@click.argument("job_spec", metavar="JOB.json", shell_complete=complete_path)
@click.option("--resume", is_flag=True, help="Go on from the latest checkpoint there is.")
@click.option(
    "--output-dir",
    metavar="FOLDER",
    help="Where the training keeps its files.  [default: .gen-worker-run/training/REQUEST]",
)
@click.option(
    "--device",
    metavar="DEVICE",
    shell_complete=complete_one_place,
    help="`auto`, `cpu`, or the index or UUID of a GPU.  [default: auto]",
)
@click.option("--json", "as_json", is_flag=True, help="Print how it ended as JSON.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    metavar="FORMAT",
    help="`text`, `json`, or `auto`: text, but JSON lines as the first process of a container.",
)
def command(
    job_spec: str, resume: bool, output_dir: str | None, device: str | None, as_json: bool, log_format: str | None
) -> int:
    """Train what a job spec describes."""
    refuse_other_systems("train")
    from gen_worker.outputs import safe_ref
    from gen_worker.trainer.runtime import supervised
    from gen_worker.trainer.spec import SpecError, misspelt, read_spec
    from gen_worker_supervisor.start import StartError

    try:
        spec = read_spec(job_spec)
    except SpecError as error:
        raise Failure(str(error), "" if error.code.endswith("path") else error.hint) from None
    for name, near in misspelt(json.loads(Path(job_spec).read_bytes())).items():
        say("warning", f"`{name}` means nothing in a job spec; did you mean `{near}`?")
    folder = Path(output_dir or f".gen-worker-run/training/{safe_ref(spec.request_id)}").absolute()
    settings = read_settings(training_dir=str(folder), devices=device, log_format=log_format)
    environment = dict(os.environ)
    forget_secrets()
    if resume:
        spec = msgspec.structs.replace(spec, resume_from_latest=True)
    try:
        options = {"devices_option": "--device", "folder_option": "--output-dir"}
        report = supervised(spec, settings, environment, **options)
    except StartError as error:
        raise Failure(str(error), error.hint, code=error.code) from None
    if as_json:
        click.echo(msgspec.json.encode(report))
    elif report.status == "completed" and report.final_checkpoint:
        click.echo(report.final_checkpoint)
    return report.code
