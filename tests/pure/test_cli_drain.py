"""What a person is told before all devices are drained."""

import msgspec

from gen_worker.cli.drain import question
from gen_worker.wire.status import JobStatus
from tests.top.samples import cpu_slots


def test_who_drains_every_device_is_told_that_what_waits_gets_no_turn() -> None:
    idle = msgspec.structs.replace(cpu_slots(), jobs=[])
    assert question(idle).startswith("give no more requests to `cpu:0`, ")
    assert "unavailable" not in question(idle)
    jobs = [JobStatus("r1", "paint", "running", gpu="cpu:0"), JobStatus("r2", "paint", "queued")]
    assert question(msgspec.structs.replace(idle, jobs=jobs)).endswith(", and answer 1 that waits with `unavailable`?")
    many = msgspec.structs.replace(idle, jobs=jobs, jobs_left_out=40)
    assert question(many).endswith(", and answer 41 that wait with `unavailable`?")
