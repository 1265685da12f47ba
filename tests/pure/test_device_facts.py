"""What is counted of devices: whose memory is in use, what children died of, what came over the network."""

from dataclasses import replace

import pytest

from gen_worker.models.wanted import Slot, Wanted
from gen_worker.wire.fetching import Fetched, FetchFailed, Fetching
from gen_worker.wire.page import Reading
from gen_worker_supervisor.core.catalog import Catalog
from gen_worker_supervisor.core.deaths import counted_as
from gen_worker_supervisor.core.ladder import Ending, Reason
from gen_worker_supervisor.core.state import Child, Death, Device
from gen_worker_supervisor.status.report import vram_ours
from tests.pure.host import KILLED, Host, snapshot

GPU = Device("cuda:0", "cuda")
READING = Reading(1, 0.0, 1, 10, 30, 0, 0.0, 0, 0.0, "")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_gpu_that_is_ours_is_what_all_its_children_hold() -> None:
    assert vram_ours(GPU, [READING, replace(READING, vram_held=12)]) == 42


def test_without_a_child_none_of_a_gpus_memory_is_ours() -> None:
    assert vram_ours(GPU, []) == 0


def test_what_one_child_does_not_say_nobody_knows() -> None:
    assert vram_ours(GPU, [READING, None]) is None
    assert vram_ours(GPU, [READING, replace(READING, vram_held=0)]) is None


def test_a_cpu_slot_has_no_memory_of_a_device() -> None:
    assert vram_ours(Device("cpu:0", "cpu"), [READING]) is None


# --- deaths -----------------------------------------------------------------------------------------------------------


def child(reason: Reason | None = None, doom: str = "") -> Child:
    ending = None if reason is None else Ending(reason, 0.0)
    return Child(GPU, 1, 0.0, ending=ending, doom=doom)


@pytest.mark.parametrize(
    ("dead", "death", "word"),
    [
        (child(), Death("SIGSEGV", signal="SIGSEGV"), "SIGSEGV"),
        (child(), Death("exit code 7", exit_code=7), "exit"),
        (child(), Death("could not be made: no memory", unborn=True), "unborn"),
        (child(Reason.KILL), KILLED, "kill"),
        (child(Reason.DEADLINE), KILLED, "deadline"),
        (child(doom="host_oom"), KILLED, "host_oom"),
        (child(Reason.STALL, doom="hang"), KILLED, "hang"),
        (child(Reason.RESTART), KILLED, None),
        (child(Reason.DRAIN), KILLED, None),
    ],
)
def test_a_death_is_counted_under_one_of_few_words(dead: Child, death: Death, word: str | None) -> None:
    assert counted_as(dead, death) == word


def test_each_death_of_a_device_is_counted_once_and_a_wanted_end_is_none() -> None:
    host = Host()
    device = host.fleet.devices[0]
    host.dies(host.child())
    assert device.deaths == {"SIGKILL": 1}
    host.boot()
    host.child().retiring = True
    host.dies(host.child(), Death("exit code 0", exit_code=0))
    assert (device.deaths, device.restarts) == ({"SIGKILL": 1}, 2)


# --- downloads --------------------------------------------------------------------------------------------------------


def test_bytes_that_come_over_the_network_count_once_and_those_that_were_here_do_not() -> None:
    catalog, slot = Catalog(), Slot("weights", Wanted("hf", "acme/xl"))
    catalog.ask([slot], 0.0, urgent=True)
    (probe,) = catalog.orders(0.0)
    catalog.reported(FetchFailed(probe.number, "absent", "", "", retryable=True), 1.0)
    (order,) = catalog.orders(1.0)
    counted = []
    for done in (40, 70, 60, 90):  # 40 were there; a part is fetched again
        catalog.reported(Fetching(order.number, done, 100), 2.0)
        counted.append(catalog.downloaded_bytes)
    catalog.reported(Fetched(order.number, snapshot(slot.wanted), 75), 3.0)
    assert [*counted, catalog.downloaded_bytes] == [0, 30, 30, 50, 75]


def test_a_model_that_is_on_this_host_already_comes_over_no_network() -> None:
    catalog, slot = Catalog(), Slot("weights", Wanted("hf", "acme/xl"))
    catalog.ask([slot], 0.0, urgent=True)
    (probe,) = catalog.orders(0.0)
    catalog.reported(Fetched(probe.number, snapshot(slot.wanted), 0), 1.0)
    assert catalog.downloaded_bytes == 0
