"""What `gen-worker top` asks before it acts, and what it says came of it."""

import msgspec
import pytest

from gen_worker.top.dialogs import Ask, ask_drain, ask_restart, ask_stop, reload_s
from gen_worker.top.errands import told_drained, told_killed, told_restarted
from gen_worker.top.history import History
from gen_worker.top.keys import KEYS, offered
from gen_worker.wire.control import Drained, Killed, Restarted
from gen_worker.wire.status import DeviceStatus, HostModelStatus, JobStatus, ModelStatus, Status

GIB = 1 << 30
HUNG = DeviceStatus(
    3, "GPU-1", "cuda:3", 4181, "hung", hang="gil_held", silent_s=47.0, job="2f2c",
    models=[ModelStatus("wan2.2", int(33.4 * GIB), "VRAM"), ModelStatus("vae", None)],
)  # fmt: skip
IDLE = DeviceStatus(4, "GPU-2", "cuda:4", 4200, "idle", models=[ModelStatus("sdxl", 7 * GIB)])
RUNS = JobStatus("2f2c", "video.render", "running", "denoise 31/50", 0.62, 48.0, 12.0, "cuda:3")
BESIDE = JobStatus("77aa", "video.render", "running", elapsed_s=3.0, gpu="cuda:3")
WAITS = JobStatus("c5a6", "train.lora", "queued", queued_s=35.0)


def status(*jobs: JobStatus) -> Status:
    return Status(0.0, "host", "1", 1, 10.0, gpus=[HUNG, IDLE], jobs=list(jobs))


def said(ask: Ask) -> str:
    return "\n".join(
        [ask.question, *(f"{name} {text}" for name, text in ask.facts), *(choice.means for choice in ask.choices)]
    )


def test_stopping_a_job_names_the_job_its_child_and_what_is_lost_by_a_kill() -> None:
    asked = said(ask_stop(status(RUNS, BESIDE), RUNS, History()))
    for told in (
        "Stop job 2f2c (video.render) on GPU 3?",
        "48s of 1m00s, denoise 31/50 62%",
        "pid 4181, hung: gil_held, silent for 47.0s",
        "wan2.2 (33.4 GiB), vae",
        "77aa",
        "end child 4181",
        "Other GPUs go on.",
    ):
        assert told in asked, asked


def test_a_child_that_is_slow_is_not_said_to_hang() -> None:
    slow = msgspec.structs.replace(HUNG, state="busy", hang="unmeasurable")
    assert "pid 4181, busy, silent for 47.0s" in said(ask_restart(status(RUNS), slow))


def test_what_nobody_knows_is_not_estimated() -> None:
    asked = said(ask_stop(status(RUNS), RUNS, History()))
    assert "Its models load again. " in asked  # of one of them the size is unknown
    assert "Its models load again (7168 MiB)." in said(ask_restart(status(), IDLE))


def test_a_job_that_waits_is_only_taken_out_of_the_queue() -> None:
    ask = ask_stop(status(WAITS), WAITS, History())
    assert [choice.gives for choice in ask.choices] == ["cancel", ""]
    assert "take it out of the queue" in said(ask)


def test_a_kill_needs_a_capital_letter() -> None:
    (kill,) = [choice for choice in ask_stop(status(RUNS), RUNS, History()).choices if choice.gives == "kill"]
    assert kill.key == "K"
    assert kill.grave


def test_restarting_and_draining_say_whose_jobs_they_wait_for() -> None:
    busy = status(RUNS)
    assert [choice.key for choice in ask_restart(busy, HUNG).choices] == ["r", "N", "escape"]
    assert "2f2c may finish first" in said(ask_restart(busy, HUNG))
    assert [choice.key for choice in ask_restart(busy, IDLE).choices] == ["r", "escape"]
    assert ask_drain(busy, IDLE) is None
    drain = ask_drain(busy, HUNG)
    assert drain is not None
    assert "2f2c" in said(drain)


def test_an_author_s_text_cannot_steer_the_dialog() -> None:
    nasty = JobStatus("a\x1b[31m", "[red]f[/]", "running", "\x07 stage", gpu="cuda:3")
    ask = ask_stop(status(nasty), nasty, History())
    assert all(text.isprintable() for _, text in ask.facts)


def test_who_only_looks_has_no_key_that_acts() -> None:
    assert not any(key.acts for key in offered(readonly=True))
    assert {key.action for key in offered(readonly=False)} - {key.action for key in offered(readonly=True)} == {
        "stop",
        "restart",
        "drain",
    }
    assert len({each for key in KEYS for each in key.keys.split(",") if each}) == 13


@pytest.mark.parametrize(
    ("outcome", "text", "severity"),
    [
        (told_killed("a", Killed("a", "killed", 5, seconds=0.3)), "a was killed after 0.3s", "information"),
        (told_killed("a", Killed("a", "finished")), "a had finished by itself", "information"),
        (told_killed("a", Killed("a", "not_found")), "no request a", "warning"),
        (told_killed("a", Killed("a", "ambiguous")), "hint:", "error"),
        (told_restarted(Restarted("cuda:0", "restarted", 7, 1.0)), "cuda:0 has child 7", "information"),
        (told_restarted(Restarted("cuda:0", "failed", message="import failed")), "import failed\nhint:", "error"),
        (told_restarted(Restarted("cuda:0", "lost")), "will have none\nhint:", "error"),
        (told_restarted(Restarted("cuda:0", "not_found")), "no device cuda:0", "error"),
        (told_drained(Drained("cuda:0", "drained")), "nothing runs there", "information"),
        (told_drained(Drained("cuda:0", "undrained")), "takes jobs again", "information"),
        (told_drained(Drained("cuda:0", "lost")), "no child", "warning"),
    ],
)
def test_every_outcome_is_told_in_words(outcome: tuple[str, str], text: str, severity: str) -> None:
    assert text in outcome[0]
    assert outcome[1] == severity


def test_what_a_kill_costs_is_told_in_seconds_where_all_models_were_loaded_before() -> None:
    models = [ModelStatus("base", 6 * GIB, instance="a"), ModelStatus("vae", GIB, instance="a"), ModelStatus("x", GIB)]
    device = msgspec.structs.replace(IDLE, models=models)
    known = status()
    known.models = [HostModelStatus("base", "VRAM", load_s=18.0), HostModelStatus("vae", "VRAM", load_s=17.0)]
    assert reload_s(known, device) is None
    known.models.append(HostModelStatus("x", "VRAM", load_s=3.0))
    assert reload_s(known, device) == 21.0
    assert "(8192 MiB, about 21.0s)" in said(ask_restart(known, device))
