"""The same with devices whose memory is measured, and whose driver may report anything at any moment."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from msgspec.structs import replace

from gen_worker_supervisor.core.evidence import GpuReading
from gen_worker_supervisor.core.happenings import DeviceFault, GpusRead
from gen_worker_supervisor.core.phases import Health, Phase
from gen_worker_supervisor.core.state import Device, Function
from gen_worker_supervisor.devices.ownership import partition
from tests.pure.test_fleet_model import LEAVING, Fleets

MIB = 1 << 20
BASELINE, TOTAL = 300 * MIB, 24 << 30


class Gpus(Fleets):
    """Everything that can happen to a supervisor with GPUs."""

    def one(self, index: int) -> Device:
        gpus = [gpu for device in self.host.fleet.devices for gpu in device.gpus]
        return gpus[index % len(gpus)]

    @rule()
    def memory_of_devices_is_measured(self) -> None:
        for device in self.host.fleet.devices:
            for gpu in device.gpus:
                if gpu.vram_baseline is None:
                    gpu.vram_baseline = gpu.vram_used = BASELINE
            device.sum_up()

    @rule(index=st.integers(0, 2), excess=st.sampled_from([-100 * MIB, 0, 0, 0, 64 * MIB, 65 * MIB, 2 << 30]))
    def driver_says_what_is_in_use(self, index: int, excess: int) -> None:
        self.happens(GpusRead([GpuReading(self.one(index).name, BASELINE + excess, TOTAL)]))

    @rule(index=st.integers(0, 2), number=st.integers(0, 9))
    def driver_reports_a_fault(self, index: int, number: int) -> None:
        self.happens(DeviceFault(self.one(index).name, f"XID {number}", fatal=number > 6))

    @invariant()
    def a_device_that_settles_has_a_dead_child_and_an_end_of_it(self) -> None:
        if not hasattr(self, "host") or self.host.fleet.finished:
            return
        for device in self.host.fleet.devices:
            settling = device.child is not None and device.child.phase is Phase.SETTLING
            if settling and not device.lost and not self.drained:
                assert device.settle_by is not None
                assert device.settle_by >= self.host.now

    @invariant()
    def a_lost_device_has_no_child_that_lives_on(self) -> None:
        for device in self.host.fleet.devices if hasattr(self, "host") else ():
            for child in (device.child, device.coming) if device.lost and not self.host.fleet.finished else ():
                assert child is None or child.phase in LEAVING

    @invariant()
    def what_is_not_well_says_why(self) -> None:
        for device in self.host.fleet.devices if hasattr(self, "host") else ():
            assert bool(device.reason) == (device.health is not Health.OK)
            assert bool(device.unattributed) <= (device.health is not Health.OK)


class Groups(Gpus):
    """The same with a group beside single ones, which some functions need."""

    def needing(self, made: Function) -> Function:
        count = 2 if made.name in ("classy", "stream", "other") else 1
        return Function(replace(made.surveyed, gpu_count=count))

    def devices(self, count: int) -> list[Device]:
        return partition([Device(f"cpu:{index}", "cpu") for index in range(count + 1)], {1, 2})

    @invariant()
    def a_job_has_as_many_gpus_as_it_needs(self) -> None:
        for child in self.host.fleet.children() if hasattr(self, "host") else ():
            for job in child.leased.values():
                assert child.device.gpu_count >= job.function.surveyed.gpu_count

    @invariant()
    def a_group_is_kept_for_what_needs_one_while_a_single_one_is_there(self) -> None:
        fleet = self.host.fleet if hasattr(self, "host") else None
        if fleet is not None and any(not device.members and not device.lost for device in fleet.devices):
            for device in fleet.devices:
                child = device.child if device.members else None
                for job in () if child is None else child.leased.values():
                    assert job.function.surveyed.gpu_count > 1


QUICK = settings(max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))

TestGpus = Gpus.TestCase
TestGpus.settings = QUICK
TestGroups = Groups.TestCase
TestGroups.settings = QUICK
