"""The GPUs, their driver, who has them, and whether torch can compute on them: judged from what others looked at."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from gen_worker.doctor import program
from gen_worker.doctor.finding import Finding, ok, problem, size, skipped, warning
from gen_worker.doctor.gpu_probe import Driver, Gpu
from gen_worker.extras import installed_by

DRIVER_LIMIT_S = 10.0
CONTEXT_LIMIT_S = 20.0
TORCH_LIMIT_S = 60.0
HOT_C = 90
TAKEN_BYTES = 1 << 30  # of a GPU that no supervisor has
_ABSENT = (12, 9)  # NVML: no library, no driver
_OTHER_VERSION = 18  # NVML: the driver was updated, and not loaded again
_RESTART = "restart the host, or reset the GPU: `nvidia-smi --gpu-reset`"


def driver(limit_s: float = DRIVER_LIMIT_S) -> Driver:
    """Ask the driver, in a process of its own: a sick one may never answer."""
    told = program.module("gen_worker.doctor.gpu_probe", limit_s=limit_s)
    if told.code is None:
        return Driver(error=f"it did not answer within {limit_s:g} s", code=-1)
    try:
        return msgspec.json.decode(told.out, type=Driver)
    except msgspec.DecodeError:
        last = told.err.strip().splitlines()[-1:] or [f"asking it ended a process with status {told.code}"]
        return Driver(error=last[0], code=-1)


def about_driver(seen: Driver, root: Path = Path("/")) -> Finding:
    """Whether there is a driver, and answers. Pure but for device files."""
    if not seen.error:
        cuda = "" if seen.cuda is None else f", CUDA up to {seen.cuda[0]}.{seen.cuda[1]}"
        return ok("driver", f"NVIDIA {seen.version}{cuda}, {_gpus(len(seen.gpus))}")
    if seen.code in _ABSENT:
        if devices := sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*")):
            told = f"there is `/dev/{devices[0]}`, and no library of the driver"
            remedy = "`docker run --gpus all`, and `NVIDIA_DRIVER_CAPABILITIES=compute,utility` in the image"
            return problem("driver", told, remedy)
        return skipped("driver", "no NVIDIA driver: children run on CPU slots, as `--devices cpu:2` says")
    if seen.code == _OTHER_VERSION:
        return problem("driver", seen.error, "the driver was updated: restart the host, or load its modules again")
    return problem("driver", f"the NVIDIA driver does not answer: {seen.error}", _RESTART)


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def about_devices(seen: Driver) -> list[Finding]:
    """Say which GPUs supervisors would take here, and why no others. Pure."""
    if not seen.gpus:
        return []
    if seen.refusal:
        return [problem("devices", seen.refusal, "name GPUs that are there, or unset the variable")]
    listed = "; ".join((", ".join(seen.devices) or "none", *seen.notices))
    if seen.devices:
        return [ok("devices", listed)]
    return [warning("devices", listed, "without a GPU children run on CPU slots, and workers refuse jobs for GPUs")]


def about_gpu(gpu: Gpu, holder: str = "") -> Iterator[Finding]:
    """Say how one GPU is; `holder` is the supervisor that has it. Pure."""
    name = f"cuda:{gpu.index}"
    if gpu.error:
        yield problem(name, f"it does not answer: {gpu.error}", _RESTART)
        return
    memory = "" if gpu.total is None else f", {size(gpu.used or 0)} of {size(gpu.total)} used"
    whose = f", in use by {holder}" if holder else ""
    divided = ", divided (MIG): each part is a device" if gpu.mig else ""
    told = f"{gpu.name}{memory}{divided}{whose} ({gpu.uuid})"
    ailments = list(_ailments(gpu, taken=bool(holder)))
    if not ailments:
        yield ok(name, told)
    for judge, ailment, remedy in ailments:
        yield judge(name, f"{ailment}: {told}", remedy)


def _ailments(gpu: Gpu, *, taken: bool) -> Iterator[tuple[Callable[[str, str, str], Finding], str, str]]:
    if gpu.remap_failed:
        yield problem, "its memory is worn: rows could not be replaced", "have the GPU replaced"
    if gpu.uncorrected:
        yield problem, f"{gpu.uncorrected} memory errors that were not corrected", _RESTART
    if gpu.remap_pending:
        yield warning, "rows of its memory wait to be replaced", _RESTART
    if gpu.temperature is not None and gpu.temperature >= HOT_C:
        yield warning, f"{gpu.temperature} °C: it computes slower", "see to its cooling"
    if not taken and (gpu.used or 0) > TAKEN_BYTES:
        yield warning, "its memory is in use by others than supervisors", "`nvidia-smi` says by which processes"
    if gpu.persistence is False:
        yield warning, "its driver is unloaded when nobody uses it", "`nvidia-smi -pm 1`: else first jobs wait for it"


def holder_of(uuid: str, folder: Path | None = None) -> str:
    """Return which supervisor has a GPU, by the lock that it holds; an empty text for none that can be seen."""
    import fcntl

    from gen_worker_supervisor.devices.gpu_lock import shared_folder

    path = (folder or shared_folder()) / f"gen-worker-{uuid}.lock"
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        told = re.sub(r"[^ -~]", "?", os.pread(lock, 256, 0).decode(errors="replace"))
        if not told:  # who has it says so
            return ""
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, serves = told.partition(" ")
        return f"the supervisor {pid}" + (f" (`{serves}`)" if serves else "")
    finally:
        os.close(lock)
    return ""  # it was left by one that was killed


def usable(gpus: Sequence[Gpu], env: Mapping[str, str], limit_s: float = CONTEXT_LIMIT_S) -> Iterator[Finding]:
    """Make a context and an allocation on each GPU, which is where a sick driver shows; on all of them at once."""
    from concurrent.futures import ThreadPoolExecutor

    def tried(gpu: Gpu) -> program.Told:
        seen = {**env, "CUDA_VISIBLE_DEVICES": gpu.uuid}
        return program.module("gen_worker_supervisor.devices.cuda_probe", limit_s=limit_s, env=seen)

    with ThreadPoolExecutor(max(1, len(gpus))) as pool:
        answers = list(pool.map(tried, gpus))
    good = []
    for gpu, told in zip(gpus, answers, strict=True):
        name = f"cuda:{gpu.index}"
        if told.code == 0:
            good.append(name)
        elif told.code is None:
            yield problem("contexts", f"{name} gave no memory within {limit_s:g} s", _RESTART)
        else:
            why = told.out.strip() or f"trying it ended a process with status {told.code}"
            yield problem("contexts", f"{name} cannot be used: {why}", _RESTART)
    if good:
        yield ok("contexts", f"{', '.join(good)}: memory can be allocated")


def binding(binding: str | None, deprecated: str | None) -> Finding:
    """Whether `pynvml` is the one that the driver's makers keep: versions of `nvidia-ml-py` and of `pynvml`."""
    if binding is None:
        return problem("nvml-binding", "`nvidia-ml-py` is not installed", "`pip install nvidia-ml-py`")
    if deprecated is not None:
        told = f"`nvidia-ml-py` {binding} and `pynvml` {deprecated}, which have the same module"
        remedy = "`pip uninstall pynvml`, then `pip install --force-reinstall nvidia-ml-py`"
        return warning("nvml-binding", told, remedy)
    return ok("nvml-binding", f"nvidia-ml-py {binding}")


# --- torch ------------------------------------------------------------------------------------------------------------


class TorchBuild(msgspec.Struct, frozen=True):
    """What an installed torch was built for; `cuda` is None for processors alone."""

    version: str
    cuda: tuple[int, int] | None


def torch_build(folder: Path) -> TorchBuild | None:
    """Return what the torch in a package's folder was built for, without importing it; None where it does not say."""
    file = folder / "version.py"
    text = file.read_text() if file.exists() else ""
    version = re.search(r"^__version__ = '(.+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b.*= '(\d+)\.(\d+)", text, re.MULTILINE)
    return TorchBuild(version[1], (int(cuda[1]), int(cuda[2])) if cuda else None) if version else None


def torch_folder() -> Path | None:
    """Return the folder of the installed torch, None where there is none; imports nothing."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def about_torch(build: TorchBuild | None, seen: Driver) -> Finding:
    """Whether torch and the driver go together. Pure."""
    if build is None:
        if seen.gpus:
            return warning("torch", "not installed", f"if the endpoint uses it: {installed_by('torch')}")
        return skipped("torch", "not installed")
    built = "for processors alone" if build.cuda is None else f"for CUDA {build.cuda[0]}.{build.cuda[1]}"
    told = f"{build.version}, built {built}"
    if not seen.gpus:
        return ok("torch", told)
    if build.cuda is None:
        remedy = "`pip install --force-reinstall torch` from an index for CUDA: https://pytorch.org/get-started/locally"
        return problem("torch", f"{told}: it does not see the GPUs", remedy)
    if seen.cuda is not None and build.cuda[0] > seen.cuda[0]:
        remedy = f"install a driver for CUDA {build.cuda[0]}, or a torch for CUDA {seen.cuda[0]}"
        return problem("torch", f"{told}; the driver takes CUDA {seen.cuda[0]}.{seen.cuda[1]} at most", remedy)
    return ok("torch", told)


def torch_on_gpus(gpus: Sequence[Gpu], limit_s: float = TORCH_LIMIT_S) -> Finding:
    """Import torch, in a process of its own, and ask which GPUs it has code for."""
    told = program.module("gen_worker.doctor.torch_probe", limit_s=limit_s)
    if told.code is None:
        return problem("torch-gpus", f"torch was not imported within {limit_s:g} s", "look at the disk it lies on")
    if told.code != 0:
        last = told.err.strip().splitlines()[-1:] or [f"importing it ended a process with status {told.code}"]
        return problem("torch-gpus", f"torch cannot be imported: {last[0]}", "install it again")
    return about_code(told.out.split(), gpus)


def about_code(built: Sequence[str], gpus: Sequence[Gpu]) -> Finding:
    """Whether torch has code for each GPU: `built` is as `sm_90` for machine code, `compute_90` for what becomes it."""
    lacking = sorted({gpu.capability for gpu in gpus if gpu.capability and not _runs_on(built, gpu.capability)})
    if lacking:
        listed = ", ".join(f"sm_{major}{minor}" for major, minor in lacking)
        told = f"no code for {listed}; this torch has {', '.join(built)}"
        return problem("torch-gpus", told, "install a torch that was built for this GPU")
    return ok("torch-gpus", f"code for every GPU: {', '.join(built)}")


def _runs_on(built: Sequence[str], capability: tuple[int, int]) -> bool:
    for each in built:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", each)
        if found is None:
            continue
        code = (int(found[2]), int(found[3]))
        if code <= capability and (found[1] == "compute" or code[0] == capability[0]):
            return True
    return False
