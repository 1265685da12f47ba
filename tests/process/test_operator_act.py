"""What an operator does about a hung child, from the first sign to the next child, while the others serve."""

import json
import time
from contextlib import ExitStack

import pytest

from gen_worker import postmortem
from gen_worker.wire.status import DeviceStatus, Status
from tests.served import Serve, Server, until
from tests.witness import Witness

pytestmark = [pytest.mark.process, pytest.mark.quiet]

SHOWN_S = 3.0
LOOKED_AT_S = 0.3  # documents come every 0.1 s, and one is shown for 0.2 s
ACT_S = 10.0
LATE_S = 0.05


def seen_hung(server: Server) -> DeviceStatus:
    """Return the device that is shown as hung, once one is."""
    documents = server.client.watch(0.1, jobs=0)
    deadline = time.monotonic() + ACT_S
    for document in documents:
        found = [device for device in json.loads(document)["gpus"] if device["state"] == "hung"]
        if found:
            documents.close()
            return next(device for device in server.status().gpus if device.name == found[0]["name"])
        assert time.monotonic() < deadline, "no device is shown as hung"
    raise AssertionError("the supervisor has gone")


def idle_again(status: Status, device: DeviceStatus) -> bool:
    """Whether a device has another child, which waits for jobs."""
    found = next(each for each in status.gpus if each.name == device.name)
    return found.state in ("idle", "busy") and found.pid not in (None, device.pid)


@pytest.mark.promise(7, 45)
def test_a_hung_child_is_found_looked_into_and_replaced_within_ten_seconds_and_no_other_job_is_late(
    serve: Serve,
) -> None:
    server = serve(devices="cpu:4")
    with Witness(server) as alone:
        alone.until_served(200)
    with server.connect() as connection, ExitStack() as stack:
        crowd = [stack.enter_context(Witness(server, name=f"beside-{each}")) for each in range(3)]
        crowd[0].until_served()
        connection.send("hold-the-interpreter", "hung")
        server.until_running("hung")
        began = time.monotonic()

        hung = seen_hung(server)
        assert (hung.hang, hung.job) == ("gil_held", "hung")
        assert time.monotonic() - began < SHOWN_S + LOOKED_AT_S

        shown = server.client.stack(hung.name)
        assert (shown.outcome, shown.pid) == ("shown", hung.pid)
        assert any("hold_the_interpreter" in line for line in shown.lines)

        killed = server.client.kill("hung", now=True)
        assert killed.outcome == "killed"
        assert any("hold_the_interpreter" in line for line in killed.stack)
        until(lambda: idle_again(server.status(), hung), what="the next child")
        took_s = time.monotonic() - began
        for witness in crowd:
            witness.until_served()
        error = connection.frame()["error"]
    p99_s = max(witness.p99_s() for witness in crowd)
    print(f"the act took {took_s:.1f} s; p99 {alone.p99_s() * 1000:.1f} ms alone, {p99_s * 1000:.1f} ms meanwhile")
    assert took_s < ACT_S
    assert [witness.wrong for witness in crowd] == [[], [], []]
    assert p99_s < max(LATE_S, 3 * alone.p99_s())
    assert max(max(witness.took_s) for witness in crowd) < 1.0

    assert (error["kind"], error["retryable"], error["detail"]["hang"]) == ("killed", False, "gil_held")
    told = postmortem.read(postmortem.folder_in(server.folder / "run"), error["detail"]["postmortem"])
    assert (told.device, told.pid, told.hang) == (hung.name, hung.pid, "gil_held")
    assert [job.request_id for job in told.jobs] == ["hung"]
    assert any("hold_the_interpreter" in line for line in told.stack)
