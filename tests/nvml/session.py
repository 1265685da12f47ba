"""A host of eight GPUs that are not there, busy with what a studio has to do: what pictures and benchmarks are made of.

Everything above the driver is real: the supervisor, its children, the hub that models come from, the deaths. `busy`
brings it to where there is something to see: jobs of four functions, a queue, a child that hangs, one that loads, one
that died too often, a drained device and a download.
"""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from gen_worker.testing import LoopbackHub, Slow
from gen_worker.wire.status import DeviceStatus
from tests.nvml.simulated import H100, Gpu, Simulated, gpus
from tests.served import Connection, Server, serving, until

STUDIO = Path(__file__).with_name("studio.py")
CONTEXT_BYTES = 520 << 20  # that the driver takes for each process
IDLE_BYTES = 300 << 20
DRAINED, RENDERING = "cuda:7", 3
_MODELS = {  # size in GB, seconds that a load takes
    "black-forest-labs/FLUX.1-dev": (33.7, 0.3),
    "stabilityai/sdxl-base-1.0": (6.9, 0.2),
    "Wan-AI/Wan2.1-T2V-14B": (45.4, 3600.0),
}
_LATE_MODEL = "tencent/HunyuanVideo"
_LATE_BYTES, _LATE_BYTES_PER_S = 96 << 20, 0.4e6  # of each part; several come at once


class Session:
    """A server of the studio's functions, on eight H100."""

    def __init__(self, server: Server, world: Simulated, connection: Connection) -> None:
        self.server = server
        self._world = world
        self._connection = connection
        self._ended = threading.Event()
        self._driver = threading.Thread(target=self._drive, daemon=True)

    @contextmanager
    def driven(self) -> Iterator["Session"]:
        """Have the driver tell of what the children do until the body ends."""
        self._driver.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._driver.join()

    # --- what happens on it ---

    def asks(self, function: str, request_id: str, tenant: str, **payload: float) -> None:
        """Have a tenant ask for something that nobody waits for."""
        self._connection.line(
            {
                "function": function,
                "request_id": request_id,
                "payload": payload,
                "tenant": tenant,
                "timeout_ms": 600_000,
            }
        )

    def busy(self) -> None:
        """Bring it to where there is something to see; it stays so for a minute and longer."""
        self.server.client.drain(DRAINED)
        self.asks("upscale", "hero-shot-4k", "northlight")
        self._until_running("hero-shot-4k")
        for number in range(RENDERING):
            self.asks("text-to-image", f"cover-{number + 1:02}", "atlas", steps=40, seconds_a_step=2.0 + 0.4 * number)
            self._until_running(f"cover-{number + 1:02}")
        self.asks("image-to-image", "moodboard-12", "northlight", steps=24, seconds_a_step=3.0)
        self._until_running("moodboard-12")
        self.asks("text-to-video", "trailer-a", "atlas", steps=60, seconds_a_step=1.5)
        until(lambda: self._states().count("loading") == 1, what="a child that loads")
        self.asks("video-to-video", "restyle-7", "northlight")
        until(lambda: "hung" in self._states(), what="a child that hangs")
        for number in (1, 2, 3):  # each costs two children, and the next one comes the later
            self.asks("segment", f"mask-{number}", "northlight", steps=number)
            until(partial(self._has_had, deaths=2 * number), what="the deaths of its children")
        for tenant, number in (("northlight", 1), ("atlas", 5), ("northlight", 2)):
            self.asks("text-to-image", f"poster-{number:02}", tenant, steps=40, seconds_a_step=2.0)

    def _until_running(self, request_id: str) -> None:
        until(
            lambda: (job := self.server.job(request_id)) is not None and job.elapsed_s > 0, what=f"{request_id} running"
        )

    def _states(self) -> list[str]:
        return [device.state for device in self.server.status().gpus]

    def _has_had(self, deaths: int) -> bool:
        return sum(sum(device.deaths.values()) for device in self.server.status().gpus) >= deaths

    # --- what its driver says ---

    def _drive(self) -> None:
        names = {f"cuda:{index}": gpu for index, gpu in enumerate(self._world.gpus)}
        while not self._ended.wait(0.25):
            for device in self.server.status().gpus:
                if gpu := names.get(device.name):
                    _tell(gpu, device, int(device.index or 0))


def _tell(gpu: Gpu, device: DeviceStatus, index: int) -> None:
    """Have the driver say of a GPU what fits to what is done on it."""
    computes = device.state == "busy"
    gpu.used = IDLE_BYTES + (CONTEXT_BYTES + (device.vram_ours or 0) if device.pid is not None else 0)
    gpu.busy = (97, 88, 92, 95, 99, 91, 86, 94)[index] if computes else 0
    gpu.temperature = 61 + 2 * index if computes else 33 + index
    gpu.power = 540_000 + 17_000 * index if computes else 71_000 + 900 * index


@contextmanager
def session(folder: Path) -> Iterator[Session]:
    """Serve the studio from this folder, in which everything of it lies."""
    shutil.copy(STUDIO, folder)
    with LoopbackHub() as hub, gpus(folder, 8, H100) as world:
        for name, (gb, load_s) in _MODELS.items():
            about = json.dumps({"gb": gb, "load_s": load_s}).encode()
            hub.add_repo(name, {"model.json": about.ljust(4096)})  # a load that reads so much is seen to go on
        late = {"model.json": b'{"gb": 26.0, "load_s": 1}', "weights.gguf": bytes(_LATE_BYTES)}
        hub.add_repo(_LATE_MODEL, late)
        hub.fail(f"{_LATE_MODEL}/weights.gguf", Slow(_LATE_BYTES_PER_S))
        variables = world.variables | hub.variables()
        variables |= {"TENSORHUB_CACHE_DIR": str(folder / "cache"), "HF_HOME": "", "HF_TOKEN": ""}
        variables |= {"GEN_WORKER_HOST_CACHE_BYTES": "0"}
        options = {"module": "studio", "cwd": folder, "devices": "auto", "variables": variables}
        with (
            serving(folder, **options) as server,
            server.connect() as connection,
            Session(server, world, connection).driven() as made,
        ):
            yield made
