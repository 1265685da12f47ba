"""Looks at the GPUs and hands on what their driver says: a sick driver may take its time, so threads ask it.

One reads what is in use, often while some memory has yet to come back; one waits for what the driver reports by itself.
Where the first is held at one GPU another thread goes on with the others.
"""

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gen_worker_supervisor.core.evidence import GpuReading
from gen_worker_supervisor.core.happenings import DeviceFault, GpusRead
from gen_worker_supervisor.core.state import Device
from gen_worker_supervisor.core.xids import DOUBLE_BIT_ECC, of_xid
from gen_worker_supervisor.devices.ownership import lost_codes
from gen_worker_supervisor.loop.rounds import Rounds

EVERY_S, OFTEN_S = 1.0, 0.25
SILENT_S = 10.0  # a reading that takes longer is not waited for: what was read before says nothing any more
EVENT_MS = 500  # so long the end of the watch may wait for the driver
_EVERY_INSTANCE = 0xFFFFFFFF  # in an event: it is not of one MIG instance

Tell = Callable[[GpusRead | DeviceFault], None]
Note = Callable[[str, str], None]


class GpuWatch:
    """Looks at the GPUs among the devices of one fleet, from its start until it is closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        devices: Sequence[Device],
        tell: Tell,
        note: Note,
        settles: Callable[[], bool],
        rounds: Rounds,
        silent_s: float = SILENT_S,
    ) -> None:
        """`tell`, `note` and `settles` are called on the loop; the last says whether some memory has to come back."""
        self._devices = [device for device in devices if device.kind == "cuda"]
        self._gpus = [gpu for device in self._devices for gpu in device.gpus]
        self._free = {gpu.name: (gpu.vram_total or 0) - (gpu.vram_used or 0) for gpu in self._gpus}
        self._tell, self._note, self._settles = tell, note, settles
        self._rounds = rounds
        self._silent_s = silent_s
        self._loop = loop
        self._every_s = EVERY_S
        self._turns: list[_Turns] = []
        self._silent: set[str] = set()  # of which that is told
        self._closing = threading.Event()

    def start(self) -> None:
        """Look from now on, if there is a GPU."""
        if self._gpus:
            self._read_in_turn(self._gpus)
            self._loop.call_later(min(EVERY_S, self._silent_s / 4), self._look_for_silence)
            threading.Thread(target=self._listen, name="gen-worker-gpu-faults", daemon=True).start()

    def _read_in_turn(self, gpus: Sequence[Device]) -> None:
        turns = _Turns(gpus)
        self._turns.append(turns)
        threading.Thread(target=self._look, args=(turns,), name="gen-worker-gpus", daemon=True).start()

    def free_total(self) -> int:
        """Return the bytes that were free of all GPUs together a moment ago; of a lost or drained one nothing is."""
        takes_jobs = [device for device in self._devices if not (device.drained or device.lost)]
        return sum(self._free[gpu.name] for device in takes_jobs for gpu in device.gpus)

    def look_now(self) -> None:
        """Look at once, and often as long as something settles."""
        self._every_s = OFTEN_S
        for turns in self._turns:
            turns.wake.set()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        for turns in self._turns:
            turns.wake.set()

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the loop call; one that is closed has nobody left to be told."""
        if not self._closing.is_set():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._called, function, *arguments)

    def _called(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._closing.is_set():
            function(*arguments)
            self._every_s = OFTEN_S if self._settles() else EVERY_S

    # --- what is in use ---

    def _look(self, turns: "_Turns") -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            turns.end()
            self._call(self._note, "devices", f"nobody says how the GPUs are: {str(error).lower()}")
            return
        left = [_Gpu(pynvml, gpu) for gpu in turns.gpus]
        while not self._closing.is_set():
            turns.wake.clear()
            with self._rounds.one():
                left = self._read(left, turns)
            turns.wake.wait(self._every_s)

    def _read(self, gpus: "list[_Gpu]", turns: "_Turns") -> "list[_Gpu]":
        """Read the GPUs and tell what they say; return those that are not lost, and that nobody else reads by now."""
        found = {gpu: gpu.read() for gpu in gpus if turns.begin(gpu.name)}
        turns.end()
        for gpu, told in found.items():
            self._free[gpu.name] = told.total - told.used if isinstance(told, GpuReading) else 0
            if isinstance(told, DeviceFault):
                self._call(self._tell, told)
        lost = [gpu for gpu, told in found.items() if isinstance(told, DeviceFault) and told.fatal]
        readings = [told for told in found.values() if isinstance(told, GpuReading)]
        silent = [gpu.name for gpu, told in found.items() if told is None or gpu in lost]
        self._call(self._tell, GpusRead(readings, silent))
        return [gpu for gpu in found if gpu not in lost]

    def _look_for_silence(self) -> None:
        """Tell of GPUs whose driver does not answer, once for each silence; another thread reads the others."""
        if self._closing.is_set():
            return
        self._loop.call_later(min(EVERY_S, self._silent_s / 4), self._look_for_silence)
        for turns in list(self._turns):
            held = turns.held(self._silent_s)
            if not held:
                self._silent.difference_update(gpu.name for gpu in turns.gpus)
                continue
            new = [gpu for gpu in held if gpu.name not in self._silent]
            self._silent.update(gpu.name for gpu in new)
            for gpu in new:
                self._free[gpu.name] = 0
                reason = f"its driver has not answered for {self._silent_s:g} s"
                self._tell(DeviceFault(gpu.name, reason, fatal=False))
            if new:
                self._tell(GpusRead([], [gpu.name for gpu in new]))
            if others := turns.leave(held):
                self._read_in_turn(others)

    # --- what it reports by itself ---

    def _listen(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
            events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            self._call(self._note, "devices", f"no faults are reported of the GPUs: {str(error).lower()}")
            return
        sources = self._registered(pynvml, events)
        while sources and not self._closing.is_set():
            try:
                event = pynvml.nvmlEventSetWait_v2(events, EVENT_MS)
            except pynvml.NVMLError_Timeout:
                continue
            except pynvml.NVMLError:  # a GPU is lost: reading it says which one
                self._closing.wait(EVERY_S)
                continue
            with self._rounds.one():
                for gpu, instance in sources.get(_address(event.device), ()):
                    if instance is None or event.gpuInstanceId in (instance, _EVERY_INSTANCE):
                        self._call(self._tell, _fault(pynvml, gpu.name, event))

    def _registered(self, nvml: Any, events: Any) -> dict[int | None, list[tuple[Device, int | None]]]:
        """Ask for what the GPUs report; return what each may report of: itself, or its instances and their numbers."""
        sources: dict[int | None, list[tuple[Device, int | None]]] = {}
        for gpu in self._gpus:
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(gpu.index)
                if _address(handle) not in sources:
                    _register(nvml, handle, events)
                sources.setdefault(_address(handle), []).append((gpu, _instance(nvml, gpu)))
            except nvml.NVMLError as error:
                self._call(self._note, gpu.name, f"its driver reports no faults by itself: {str(error).lower()}")
        return sources


def _register(nvml: Any, handle: Any, events: Any) -> None:
    """Ask for what a GPU can report of this; asked for more, it would report nothing."""
    wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
    nvml.nvmlDeviceRegisterEvents(handle, wanted & nvml.nvmlDeviceGetSupportedEventTypes(handle), events)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _instance(nvml: Any, gpu: Device) -> int | None:
    """Return the number of a MIG instance in its GPU, None for a GPU that is not divided."""
    if not (gpu.uuid or "").startswith("MIG-"):
        return None
    return int(nvml.nvmlDeviceGetGpuInstanceId(nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)))


def _fault(nvml: Any, device: str, event: Any) -> DeviceFault:
    if event.eventType == nvml.nvmlEventTypeDoubleBitEccError:
        return DeviceFault(device, DOUBLE_BIT_ECC, fatal=True)
    return of_xid(device, int(event.eventData))


class _Turns:
    """GPUs that one thread reads in turn, and at which of them it is."""

    def __init__(self, gpus: Sequence[Device]) -> None:
        self.gpus = list(gpus)
        self.wake = threading.Event()
        self._at: tuple[str, float] | None = "", time.monotonic()  # at the driver as a whole

    def begin(self, name: str) -> bool:
        """Be at this GPU from now on; not where another thread has taken it over."""
        mine = any(gpu.name == name for gpu in self.gpus)
        if mine:
            self._at = name, time.monotonic()
        return mine

    def end(self) -> None:
        """Be at none."""
        self._at = None

    def held(self, for_s: float) -> list[Device]:
        """Return the GPUs that the thread has been at for so long."""
        at = self._at
        if at is None or time.monotonic() - at[1] < for_s:
            return []
        return [gpu for gpu in self.gpus if at[0] in ("", gpu.name)]

    def leave(self, held: Sequence[Device]) -> list[Device]:
        """Leave only these to the thread, and return the others."""
        others = [gpu for gpu in self.gpus if gpu not in held]
        self.gpus = list(held)
        return others


class _Gpu:
    """One GPU as the thread reads it."""

    def __init__(self, nvml: Any, device: Device) -> None:
        self.name = device.name
        self._nvml = nvml
        self._uuid = device.uuid
        self._handle: Any = None
        self._silent = False

    def read(self) -> GpuReading | DeviceFault | None:
        """Return what is in use; or why that cannot be said, the first time."""
        nvml = self._nvml
        try:
            if self._handle is None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except nvml.NVMLError as error:
            fatal, known, self._silent = error.value in lost_codes(nvml), self._silent, True
            reason = f"its driver says: {str(error).lower()}"
            return None if known and not fatal else DeviceFault(self.name, reason, fatal=fatal)
        self._silent = False
        return GpuReading(
            self.name,
            int(memory.used),
            int(memory.total),
            busy=self._asked(lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100),
            temperature=self._asked(lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)),
            watts=self._asked(lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
        )

    def _asked(self, question: Callable[[Any], float]) -> float | None:
        """Return an answer, None where this GPU has none to it."""
        try:
            return float(question(self._handle))
        except self._nvml.NVMLError:
            return None
