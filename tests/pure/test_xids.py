"""What the driver's error numbers mean for a GPU."""

import pytest

from gen_worker_supervisor.core.xids import NOTED, RETIRES, SPOILS, of_xid


@pytest.mark.parametrize("number", [48, 62, 64, 74, 79, 95, 119, 120, 143, 154])
def test_a_gpu_with_an_error_that_only_a_reset_mends_is_given_up(number: int) -> None:
    assert of_xid("cuda:0", number).fatal


@pytest.mark.parametrize("number", [13, 31, 43, 45, 94])
def test_an_error_that_spoils_one_programs_context_leaves_the_gpu(number: int) -> None:
    assert not of_xid("cuda:0", number).fatal


def test_an_error_is_told_by_its_number_and_its_meaning_where_that_is_known() -> None:
    assert of_xid("cuda:1", 79).reason == "XID 79: the GPU has fallen off the bus"
    assert of_xid("cuda:1", 4711).reason == "XID 4711"
    assert not of_xid("cuda:1", 4711).fatal


def test_no_error_has_two_meanings() -> None:
    assert len(RETIRES | SPOILS | NOTED) == len(RETIRES) + len(SPOILS) + len(NOTED)
