"""When a supervisor is ready for jobs, and the file that says so."""

from pathlib import Path

import pytest

from gen_worker_supervisor.core.evidence import Hang
from gen_worker_supervisor.core.phases import Phase
from gen_worker_supervisor.core.state import Child, Device, Fleet
from gen_worker_supervisor.status.readiness import ReadyFile, is_ready


def fleet(*phases: Phase, booting: bool = False) -> Fleet:
    devices = [Device(f"cpu:{number}", "cpu") for number in range(len(phases))]
    for device, phase in zip(devices, phases, strict=True):
        device.child = Child(device, 1, 0.0, phase)
    return Fleet({}, devices, booting=booting)


@pytest.mark.parametrize("phase", [Phase.READY, Phase.BUSY, Phase.LOADING])
def test_one_child_that_takes_jobs_is_enough(phase: Phase) -> None:
    assert is_ready(fleet(Phase.DYING, phase))


@pytest.mark.parametrize("phase", [Phase.FORKING, Phase.IMPORTING, Phase.SUSPECT, Phase.DRAINING, Phase.BACKOFF])
def test_a_child_that_takes_none_is_not(phase: Phase) -> None:
    assert not is_ready(fleet(phase))


def test_a_child_that_hangs_takes_none_and_one_whose_bytes_still_move_does() -> None:
    busy = fleet(Phase.BUSY)
    (child,) = busy.serving()
    child.hang = Hang.GIL_HELD
    assert not is_ready(busy)
    child.hang = Hang.LOADING_SLOW
    assert is_ready(busy)


def test_nobody_is_ready_before_the_start_is_over_or_while_everything_drains() -> None:
    assert not is_ready(fleet(Phase.READY, booting=True))
    draining = fleet(Phase.READY)
    draining.draining = True
    assert not is_ready(draining)


def test_the_ready_file_is_there_for_as_long_as_it_is_true(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ready"
    file = ReadyFile(path)
    assert not path.exists()
    file.show(True)
    file.show(True)
    assert path.exists()
    file.show(False)
    assert not path.exists()


def test_what_a_killed_supervisor_left_goes_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.touch()
    ReadyFile(path)
    assert not path.exists()
