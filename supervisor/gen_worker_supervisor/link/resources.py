"""What a worker says of its host in the first message of a stream.

Pure: takes the devices, the survey and the settings, returns values. What could not be measured has ended the start.
"""

from collections.abc import Iterable, Sequence

from gen_worker.settings import Settings
from gen_worker.wire.scheduler import WorkerResources
from gen_worker_supervisor.core.state import Device


def resources(devices: Sequence[Device], libraries: Iterable[str], settings: Settings) -> WorkerResources:
    """Return what the host has: sums over the GPUs that the worker can use, and the capability that all of them have.

    `libraries` are those of `Survey.libraries`.
    """
    gpus = [gpu for device in devices if device.kind == "cuda" and not device.lost for gpu in device.gpus]
    return WorkerResources(
        gpu_count=len(gpus),
        vram_total_bytes=sum(device.vram_total or 0 for device in gpus),
        gpu_name=", ".join(dict.fromkeys(device.product for device in gpus)),
        gpu_sm=min((device.sm for device in gpus), key=int, default=""),
        installed_libs=tuple(libraries),
        image_digest=settings.image_digest,
        git_commit=settings.git_commit,
        instance_id=settings.runpod_pod_id,
    )
