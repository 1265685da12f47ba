"""Put models where a rung says, see where they are, and take them off their device.

What is known of a model is read off the model itself, so that what its author did to it counts too. A worker's child
and `gen_worker.models.memory` share this; nothing here loads torch before it has a model in hand.
"""

import gc
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gen_worker.models.rungs import EXACT, Rung, Sizes, next_rung
from gen_worker.models.uploading import WORTH_BYTES, upload

_GROUP_HOOKS = ("layer_execution_tracker", "lazy_prefetch_group_offloading", "group_offloading")
"""What diffusers names the hooks of its group offloading; they come off in the order in which it takes them off."""

_OF_ACCELERATE = "_hf_hook"
_DENOISERS = ("transformer", "transformer_2", "unet", "prior")


# --- where a model is -------------------------------------------------------------------------------------------------


def rung_of(model: Any) -> Rung:
    """Return the rung that a model is on, whoever put it there."""
    hooks = {hook for each in _modules(model) for part in each.modules() for hook in _hooks(part)}
    if "group_offloading" in hooks:
        return Rung.GROUP_OFFLOAD
    if getattr(model, "_all_hooks", None):
        return Rung.MODEL_OFFLOAD
    if _OF_ACCELERATE in hooks:
        return Rung.GROUP_OFFLOAD  # parameter by parameter: its author's doing, and nothing needs less
    if "layerwise_casting" in hooks:
        return Rung.LAYERWISE_FP8
    vae = _decoder(model)
    return Rung.VAE_ONLY if vae is not None and vae.use_slicing and vae.use_tiling else Rung.OFF


def possible(model: Any) -> frozenset[Rung]:
    """Return the rungs that a model can take: of what is no pipeline, only to be plainly on its device."""
    rungs = {Rung.OFF}
    if _decoder(model) is not None:
        rungs.add(Rung.VAE_ONLY)
    if not _is_pipeline(model) or getattr(model, "hf_device_map", None) or any(map(_quantized, _modules(model))):
        return frozenset(rungs)
    if any(hasattr(each, "enable_layerwise_casting") for each in _denoisers(model)):
        rungs.add(Rung.LAYERWISE_FP8)
    if getattr(model, "model_cpu_offload_seq", None):
        rungs.add(Rung.MODEL_OFFLOAD)
    rungs.add(Rung.GROUP_OFFLOAD)
    return frozenset(rungs)


# --- where it shall be ------------------------------------------------------------------------------------------------


def place(model: Any, rung: Rung, device: str) -> Rung:
    """Put a model on a rung and return the one that it is on; a second time changes nothing.

    What a rung did to the decoder and to the weights of the denoiser stays when a model goes back to an earlier one.
    Raises `ValueError` for a rung that the model cannot take.
    """
    if rung not in possible(model):
        raise ValueError(f"a `{type(model).__name__}` cannot be placed as `{rung}`")
    before = rung_of(model)
    if rung is not Rung.OFF and (vae := _decoder(model)) is not None:
        vae.enable_slicing()
        vae.enable_tiling()
    if rung is before and rung in (Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD):
        return rung
    _remove_offloading(model)
    match rung:
        case Rung.LAYERWISE_FP8:
            _store_in_eight_bits(model)
            _move(model, device)
        case Rung.MODEL_OFFLOAD:
            model.enable_model_cpu_offload(device=device)
        case Rung.GROUP_OFFLOAD:
            _move(model, "cpu")
            _offload_groups(model, device)
        case _:
            _move(model, device)
    return rung_of(model)


def climb(model: Any, device: str, allowed: Collection[Rung] = EXACT) -> Rung | None:
    """Put a model on the next rung that it can take and return that; None when it is on its last one."""
    rung = next_rung(rung_of(model), possible(model) & frozenset(allowed))
    return None if rung is None else place(model, rung, device)


def reset(model: Any) -> None:
    """Bring a pipeline that was interrupted in a call back to where it starts one from."""
    if getattr(model, "_all_hooks", None):
        model.maybe_free_model_hooks()  # what was at work when the call ended is still on the device


def let_go(model: Any) -> int:
    """Take a model's weights off every device, whoever still refers to it, and return the bytes that came free.

    The model is of no use afterwards.
    """
    freed = measure(model)
    _remove_offloading(model)
    for each in _modules(model):
        _plain_to(each, "meta")
    free_cache()
    _free_pinned()
    return freed


def free_cache() -> None:
    """Collect what nobody refers to and give the device what its allocator keeps for later."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()


# --- how large it is --------------------------------------------------------------------------------------------------


def measure(model: Any, on: str = "") -> int:
    """Return the bytes of all weights and buffers in a model, a pipeline or a collection of those, shared ones once.

    `on` is a kind of device, as `cuda`: then only what lies there counts.
    """
    return _bytes_of(each for each in _tensors(_modules(model)) if each.device.type == (on or each.device.type))


def sizes(model: Any) -> Sizes:
    """Return what a model takes in all, and what its largest parts do."""
    modules = list(_modules(model))
    layers = (_own_bytes(part) for each in modules for part in each.modules())
    return Sizes(
        total=measure(model),
        component=max((_bytes_of(_tensors([each])) for each in modules), default=0),
        layer=max(layers, default=0),
    )


def free_bytes(device: str) -> int | None:
    """Return what is free of a device's memory, with what torch keeps for later; None for the CPU."""
    if device.partition(":")[0] != "cuda":
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_stats(device)
    return int(free + held.get("reserved_bytes.all.current", 0) - held.get("active_bytes.all.current", 0))


# --- parts of models --------------------------------------------------------------------------------------------------


def _is_pipeline(model: Any) -> bool:
    if not callable(getattr(model, "enable_model_cpu_offload", None)):
        return False
    return isinstance(getattr(model, "components", None), Mapping)


def _modules(model: Any) -> Iterator[Any]:
    """Yield the torch modules that a model consists of, each once, none that lies in another."""
    torch: Any = sys.modules.get("torch")
    if torch is None:  # then nobody has made one
        return
    seen: set[int] = set()
    for each in _parts(model):
        if isinstance(each, torch.nn.Module) and id(each) not in seen:
            seen.add(id(each))
            yield each


def _parts(model: Any) -> Iterator[Any]:
    if isinstance(model, Mapping):
        model = list(model.values())
    if isinstance(model, list | tuple | set | frozenset):
        for each in model:
            yield from _parts(each)
    elif _is_pipeline(model):
        yield from model.components.values()
    else:
        yield model
        if not hasattr(model, "named_modules"):  # what wraps modules, as a tokenizer and a model in one
            yield from getattr(model, "__dict__", {}).values()


def _denoisers(model: Any) -> Iterator[Any]:
    for name in _DENOISERS:
        if (component := model.components.get(name)) is not None:
            yield component


def _decoder(model: Any) -> Any:
    """Return what turns latents into images, if it can do that in parts; None without one."""
    vae = model.components.get("vae") if _is_pipeline(model) else model
    wanted = ("enable_slicing", "enable_tiling", "use_slicing", "use_tiling")
    return vae if all(hasattr(vae, each) for each in wanted) else None


def _quantized(module: Any) -> bool:
    return getattr(module, "hf_quantizer", None) is not None or bool(getattr(module, "is_quantized", False))


def _hooks(module: Any) -> Iterator[str]:
    """Yield the names of the hooks on one module; a look at all modules of a pipeline costs several milliseconds."""
    own = vars(module)
    if _OF_ACCELERATE in own:
        yield _OF_ACCELERATE
    if (registry := own.get("_diffusers_hook")) is not None:
        yield from registry.hooks


def _has_hook(module: Any, name: str) -> bool:
    return name in _hooks(module)


def _group_offloaded(module: Any) -> bool:
    return any(_has_hook(part, "group_offloading") for part in module.modules())


# --- moving them ------------------------------------------------------------------------------------------------------


def _move(model: Any, device: str) -> None:
    if not callable(getattr(model, "to", None)) or any(map(_quantized, _modules(model))):
        return  # it is where its loader put it
    if device.partition(":")[0] == "cuda" and measure(model, on="cpu") >= WORTH_BYTES:
        upload(_tensors(_modules(model)), device)
    quietly = {"silence_dtype_warnings": True} if _is_pipeline(model) else {}  # of half precision on the CPU
    model.to(device, **quietly)


def _plain_to(module: Any, device: str) -> None:
    """Move a module without asking what its class thinks of that."""
    import torch

    torch.nn.Module.to(module, device)


def _free_pinned() -> None:
    """Give the host the memory that torch keeps for copies to the device: streamed offloading pins all weights."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and hasattr(torch.accelerator, "empty_host_cache"):
        torch.accelerator.empty_host_cache()


def _remove_offloading(model: Any) -> None:
    if getattr(model, "_all_hooks", None):
        model.remove_all_hooks()
    for each in _modules(model):
        if not _group_offloaded(each):
            continue
        from diffusers.hooks import HookRegistry

        registry = HookRegistry.check_if_exists_or_initialize(each)
        for name in _GROUP_HOOKS:
            registry.remove_hook(name, recurse=True)


def _offload_groups(model: Any, device: str) -> None:
    """Have each layer of each component come to the device when it works.

    On a GPU the next layer is copied while one works. Not so in the decoder: the order of its layers, which is learned
    in the first call, differs between a whole image and a tile. A component that says that it cannot be offloaded stays
    on the device.
    """
    import torch
    from diffusers.hooks import apply_group_offloading

    streams = torch.device(device).type == "cuda"
    pins_later = not _can_pin(measure(model))
    vae = _decoder(model)
    for each in _modules(model):
        if not getattr(each, "_supports_group_offloading", True):
            each.to(device)
            continue
        apply_group_offloading(
            each,
            onload_device=torch.device(device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=streams and each is not vae,
            low_cpu_mem_usage=pins_later,
        )


def _can_pin(weights_bytes: int, meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Say whether the host has room for pinned copies, which torch rounds up to powers of two: to twice, at worst."""
    with suppress(OSError):  # no Linux
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 > 2 * weights_bytes
    return False


def _store_in_eight_bits(model: Any) -> None:
    import torch

    for each in _denoisers(model):
        if any(_has_hook(part, "layerwise_casting") for part in each.modules()):
            continue
        each.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=each.dtype)


# --- measuring them ---------------------------------------------------------------------------------------------------


def _tensors(modules: Any) -> Iterator[Any]:
    for each in modules:
        yield from each.parameters()
        yield from each.buffers()


def _own_bytes(module: Any) -> int:
    return _bytes_of([*module.parameters(recurse=False), *module.buffers(recurse=False)])


def _bytes_of(tensors: Any) -> int:
    """Return the bytes of all tensors: two that lie on the same bytes count once, and none as more than its storage.

    Storages alone would not do: tensors of one mapped file share one, whose length is that of the file.
    """
    storages: dict[tuple[str, int], tuple[int, set[tuple[int, int]]]] = {}
    for tensor in tensors:
        if tensor.is_meta:
            continue
        storage = tensor.untyped_storage()
        _, ranges = storages.setdefault((str(tensor.device), storage.data_ptr()), (storage.nbytes(), set()))
        ranges.add((tensor.storage_offset() * tensor.element_size(), tensor.numel() * tensor.element_size()))
    return sum(min(length, sum(size for _, size in ranges)) for length, ranges in storages.values())
