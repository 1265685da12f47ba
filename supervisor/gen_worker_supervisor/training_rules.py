"""What the end of one attempt means for its training: it is done, it failed, or it goes on from its last checkpoint.

Pure: takes what is known of the attempt and of those before it, returns what follows.
"""

import re
from typing import Literal, NamedTuple, TypeAlias

from gen_worker.trainer.contracts import FAILURE_CATEGORIES
from gen_worker_supervisor.core.state import Outcome

DEATHS = 3  # in a row without a checkpoint between them
RAISED = "FatalError: "  # what the child's error has before its category
OPERATORS = "restart"  # the cause of an end that an operator wanted and that says nothing of the training

Status: TypeAlias = Literal["completed", "failed", "canceled"]


class Record(NamedTuple):
    """What is known of a training so far."""

    latest: int = -1
    """The step of the newest checkpoint when it was last looked for; -1: there was none."""

    deaths: int = 0
    """Attempts that ended without a checkpoint of theirs, one after the other."""


class Again(NamedTuple):
    """The training goes on."""

    record: Record
    got_on: bool
    reason: str


class Ended(NamedTuple):
    """The training has ended; `error` begins with the category of what failed."""

    status: Status
    error: str = ""


def judge(record: Record, outcome: Outcome, latest: int) -> Again | Ended:
    """Return what follows from an attempt's end; `latest` is the step of the newest checkpoint there is now."""
    match outcome.kind:
        case None:
            return Ended("completed")
        case "canceled" | "killed" | "draining":
            return Ended("canceled", outcome.message)
        case "deadline":
            return Ended("failed", "train-step: deadline exceeded: `max_runtime_seconds` are over")
        case "child_died" | "out_of_memory" | "retryable":
            return _after_death(record, outcome, latest)
        case "model_resolution" | "unavailable":
            return Ended("failed", f"model-load: {outcome.message}")
        case "invalid":  # a file of the inputs that may not be had
            return Ended("failed", f"input: {outcome.message}")
        case "user_exception":
            text = outcome.message.removeprefix(RAISED)
            told = text.partition(":")[0] in FAILURE_CATEGORIES  # else the plugin has gone past the loop
            return Ended("failed", text if told else f"train-step: {text}")
    return Ended("failed", f"startup: {outcome.message}")


def hint(error: str, latest: int, final: str = "") -> str:
    """Return what a person may do about a training that failed; empty where nobody can know.

    `latest` is the step of the newest checkpoint, -1: there is none. `final` is where what was trained is, if it is.
    """
    category = error.partition(":")[0]
    if NON_FINITE in error:
        return (
            "lower the learning rate, or clip gradients; `allow_non_finite_loss` in the job spec goes on all the same"
        )
    if category in ("upload", "auth") and final:
        back = "room on the disk" if NO_ROOM in error else "the platform back"
        what = "a fresh `capability_token`" if category == "auth" else back
        return f"what was trained is here: `{final}`; with {what}, `gen-worker train JOB --resume` stores it"
    if NO_ROOM in error:
        goes_on = f" goes on after step {latest}" if latest >= 0 else " begins anew"
        return f"make room, or have fewer checkpoints by `keep_checkpoints`: `gen-worker train JOB --resume`{goes_on}"
    again = f"`gen-worker train JOB --resume` goes on after step {latest}" if latest >= 0 else ""
    missing = _MISSING.match(error)
    what = f"install what provides `{missing[1]}`, or mend the import" if missing else _WHAT_TO_DO.get(category, "")
    return f"{what}; {again}" if what and again else what or (f"once that is mended, {again}" if again else "")


NON_FINITE, NO_ROOM = "NonFiniteLossError", "NoRoomError"
_MISSING = re.compile(r"[a-z-]+: ModuleNotFoundError: No module named '([^']+)'")
_WHAT_TO_DO = {
    "startup": "`trainer` of the job spec is `module` or `module:Symbol`, imported from the folder that it is begun in",
    "input": "look at `dataset`, `inputs` and `resume_checkpoint_path` of the job spec",
    "auth": "the platform refuses the job's `capability_token`: a fresh one is needed",
    "model-load": "look at `inputs` of the job spec, and at `setup` and `configure` of the trainer",
}
"""What a person may do, by the category of the failure."""


def _after_death(record: Record, outcome: Outcome, latest: int) -> Again | Ended:
    got_on = latest > record.latest
    counts = outcome.detail is None or outcome.detail.cause != OPERATORS
    deaths = (0 if got_on else record.deaths) + counts
    if deaths >= DEATHS:
        text = f"it ended {deaths} times without a checkpoint in between, the last time: {outcome.message}"
        return Ended("failed", f"train-step: {text}")
    return Again(Record(max(latest, record.latest), deaths), got_on, outcome.message)
