"""Looks at the GPUs and hands on what their driver says: a sick driver may take its time, so threads ask it.

One reads what is in use, often while some memory has yet to come back; one waits for what the driver reports by itself.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gen_worker_supervisor.devices import lost_codes
from gen_worker_supervisor.evidence import GpuReading
from gen_worker_supervisor.happenings import DeviceFault, GpusRead
from gen_worker_supervisor.rounds import Rounds
from gen_worker_supervisor.state import Device
from gen_worker_supervisor.xids import DOUBLE_BIT_ECC, of_xid

EVERY_S, OFTEN_S = 1.0, 0.25
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
    ) -> None:
        """`tell`, `note` and `settles` are called on the loop; the last says whether some memory has to come back."""
        self._devices = [device for device in devices if device.kind == "cuda"]
        self._gpus = [gpu for device in self._devices for gpu in device.gpus]
        self._free = {gpu.name: (gpu.vram_total or 0) - (gpu.vram_used or 0) for gpu in self._gpus}
        self._tell, self._note, self._settles = tell, note, settles
        self._rounds = rounds
        self._loop = loop
        self._every_s = EVERY_S
        self._wake = threading.Event()
        self._closing = threading.Event()

    def start(self) -> None:
        """Look from now on, if there is a GPU."""
        if self._gpus:
            threading.Thread(target=self._look, name="gen-worker-gpus", daemon=True).start()
            threading.Thread(target=self._listen, name="gen-worker-gpu-faults", daemon=True).start()

    def free_total(self) -> int:
        """Return the bytes that were free of all GPUs together a moment ago; of a lost or drained one nothing is."""
        takes_jobs = [device for device in self._devices if not (device.drained or device.lost)]
        return sum(self._free[gpu.name] for device in takes_jobs for gpu in device.gpus)

    def look_now(self) -> None:
        """Look at once, and often as long as something settles."""
        self._every_s = OFTEN_S
        self._wake.set()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._wake.set()

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

    def _look(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._call(self._note, "devices", f"nobody says how the GPUs are: {str(error).lower()}")
            return
        left = [_Gpu(pynvml, gpu) for gpu in self._gpus]
        while not self._closing.is_set():
            self._wake.clear()
            with self._rounds.one():
                left = self._read(left)
            self._wake.wait(self._every_s)

    def _read(self, gpus: "list[_Gpu]") -> "list[_Gpu]":
        """Read the GPUs and tell what they say; return those that are not lost."""
        found = {gpu: gpu.read() for gpu in gpus}
        for gpu, told in found.items():
            self._free[gpu.name] = told.total - told.used if isinstance(told, GpuReading) else 0
            if isinstance(told, DeviceFault):
                self._call(self._tell, told)
        self._call(self._tell, GpusRead([told for told in found.values() if isinstance(told, GpuReading)]))
        return [gpu for gpu, told in found.items() if not (isinstance(told, DeviceFault) and told.fatal)]

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
