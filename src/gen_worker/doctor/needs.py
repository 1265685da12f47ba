"""What an endpoint needs of this host: its module, its devices, its models."""

from collections.abc import Collection, Iterator, Sequence

from gen_worker.doctor.finding import Finding, ok, problem, size, warning
from gen_worker.doctor.gpu_probe import Gpu
from gen_worker.wire.survey import Survey, SurveyedFunction


def devices(survey: Survey, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Whether each function finds the device that it declares. Pure."""
    if not survey.functions:
        yield problem("functions", "the module declares no endpoint", "decorate a function or class with `@endpoint`")
    good = []
    for function in survey.functions:
        lack = _lack(function, gpus)
        if lack is None:
            good.append(f"`{function.name}`")
        else:
            yield lack
    if good:
        yield ok("functions", f"can be served here: {', '.join(good)}")


def _lack(function: SurveyedFunction, gpus: Sequence[Gpu]) -> Finding | None:
    if function.missing:
        told = f"`{function.name}` needs {', '.join(f'`{name}`' for name in function.missing)}"
        return problem("functions", f"{told}, not installed here", "install it")
    if not function.gpu:
        return None
    if not gpus:
        told = f"`{function.name}` needs a GPU, and there is none"
        return warning("functions", told, "`gen-worker serve` has a CPU stand for it; a worker refuses its jobs")
    fit = [gpu for gpu in gpus if _fits(function, gpu)]
    if len(gpus) < function.gpu_count:
        told = f"`{function.name}` needs {function.gpu_count} GPUs in one group, and there are {len(gpus)}"
        return problem("functions", told, "serve it on another host")
    if len(fit) < function.gpu_count:
        wants = [f"{function.vram_gb:g} GB"] if function.vram_gb is not None else []
        if function.compute_capability is not None:
            wants.append(f"compute capability {function.compute_capability:g}")
        told = f"`{function.name}` declares {' and '.join(wants)}, which no GPU here has"
        return problem("functions", told, "serve it on another host, or declare what it really needs")
    return None


def _fits(function: SurveyedFunction, gpu: Gpu) -> bool:
    each_gb = None if function.vram_gb is None else function.vram_gb / function.gpu_count
    if each_gb is not None and gpu.total is not None and round(gpu.total / (1 << 30)) < each_gb:
        return False
    if function.compute_capability is None or gpu.capability is None:
        return True
    return 10 * gpu.capability[0] + gpu.capability[1] >= round(10 * function.compute_capability)


def models(survey: Survey, here: Collection[str], free_bytes: int, *, offline: bool) -> list[Finding]:
    """Which models are on this machine: `here` has the refs of those. Pure."""
    wanted = list(dict.fromkeys(ref for function in survey.functions for ref in function.models))
    if not wanted:
        return []
    away = [ref for ref in wanted if ref not in here]
    if not away:
        return [ok("models", f"all {len(wanted)} are on this machine")]
    told = f"{len(away)} of {len(wanted)} are not on this machine: {', '.join(f'`{ref}`' for ref in away)}"
    if offline:
        return [problem("models", f"{told}, and `GEN_WORKER_OFFLINE` is set", "fetch them with `gen-worker prefetch`")]
    return [warning("models", f"{told}; {size(free_bytes)} free", "first jobs wait for them: `gen-worker prefetch`")]
