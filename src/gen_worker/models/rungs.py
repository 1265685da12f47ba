"""Which ways there are to place a model whose device is short of memory, and which one fits.

Pure: numbers in, a rung out. What a rung does to a pipeline is `gen_worker.models.placement`'s.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

GB = 1 << 30
TIGHT_BYTES = 6 * GB  # a device with no more free than this holds no image pipeline and its work side by side
UNKNOWN_BYTES = 8 * GB  # up to here a pipeline of unknown size is taken for one that does not fit
ROOMY_BYTES = 8 * GB  # beside weights and margin: a decode of a large image in one go
SMALL_BYTES = 1 * GB  # the three above are drawn for pipelines of several GB; one below this is placed by its size


class Rung(StrEnum):
    """How a model is placed, from the fastest to the one that needs the least memory."""

    OFF = "off"
    """Plainly on the device."""

    VAE_ONLY = "vae_only"
    """Images are decoded one by one and, when large, in tiles."""

    LAYERWISE_FP8 = "layerwise_fp8"
    """The weights of the denoiser are stored in eight bits. It changes what comes out: only where somebody asks."""

    MODEL_OFFLOAD = "model_offload"
    """Of a pipeline's components, only the one that works is on the device."""

    GROUP_OFFLOAD = "group_offload"
    """Only the layers that work are on the device."""

    @property
    def reported(self) -> str:
        """What frames say: nothing where a model is plainly on its device."""
        return "" if self is Rung.OFF else self.value


NEXT: dict[Rung, tuple[Rung, ...]] = {
    Rung.OFF: (Rung.VAE_ONLY, Rung.LAYERWISE_FP8, Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD),
    Rung.VAE_ONLY: (Rung.LAYERWISE_FP8, Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD),
    Rung.LAYERWISE_FP8: (Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD),
    Rung.MODEL_OFFLOAD: (Rung.GROUP_OFFLOAD,),
    Rung.GROUP_OFFLOAD: (),
}
"""Where a model goes from a rung that was not enough: to the first of these that it can take."""

ALL = frozenset(Rung)
EXACT = ALL - {Rung.LAYERWISE_FP8}
"""The rungs that leave alone what comes out: those that are taken without being asked for."""


class Sizes(NamedTuple):
    """The bytes of a model's weights, and of its parts that have to be on the device at once."""

    total: int
    component: int
    """Of the largest component of a pipeline; a model that is none is its own."""

    layer: int
    """Of the largest layer."""

    def on_device(self, rung: Rung) -> int:
        """Return the most that the weights take of the device on a rung."""
        match rung:
            case Rung.MODEL_OFFLOAD:
                return self.component
            case Rung.GROUP_OFFLOAD:
                return 2 * self.layer  # the next one comes while one works
            case _:
                return self.total  # of `layerwise_fp8` that is too much, until it is measured


def next_rung(rung: Rung, possible: Collection[Rung] = EXACT) -> Rung | None:
    """Return the rung to climb to, None on the last one."""
    return next((each for each in NEXT[rung] if each in possible), None)


def fitting_rung(
    sizes: Sizes | None, *, free_bytes: int, margin_bytes: int, possible: Collection[Rung] = EXACT
) -> Rung | None:
    """Return the rung on which a model fits, None when there is none.

    `sizes` is None where nobody knows them. `free_bytes` is what models may still take of the device, with the
    `margin_bytes` that are to stay free of weights. `possible` is what the model can take.
    """
    usable = free_bytes - margin_bytes
    wished = _wished(sizes, free_bytes, usable, Rung.VAE_ONLY in possible)
    for rung in (wished, *_INSTEAD[wished]):
        # the last resort may take of the margin: its parts come and go with the work that the margin is for
        room = free_bytes if rung is Rung.GROUP_OFFLOAD else usable
        if rung in possible and (sizes is None or sizes.on_device(rung) <= room):
            return rung
    return None


_INSTEAD = {
    Rung.OFF: (),
    Rung.VAE_ONLY: (Rung.OFF,),
    Rung.MODEL_OFFLOAD: (Rung.GROUP_OFFLOAD, Rung.OFF),
    Rung.GROUP_OFFLOAD: (Rung.MODEL_OFFLOAD, Rung.OFF),
}


def _wished(sizes: Sizes | None, free_bytes: int, usable: int, decodes_images: bool) -> Rung:
    if sizes is not None and (sizes.total < SMALL_BYTES or not decodes_images):
        return Rung.OFF if sizes.total <= usable else Rung.MODEL_OFFLOAD
    if free_bytes <= TIGHT_BYTES:
        return Rung.GROUP_OFFLOAD
    if sizes is None:
        return Rung.MODEL_OFFLOAD if free_bytes <= UNKNOWN_BYTES else Rung.VAE_ONLY
    if sizes.total > usable:
        return Rung.MODEL_OFFLOAD
    return Rung.OFF if usable - sizes.total >= ROOMY_BYTES else Rung.VAE_ONLY


def in_words(bytes_: int) -> str:
    """Return an amount of memory for a person, as `6.9 GB`; a GB has 2**30 bytes."""
    return f"{bytes_ / GB:.1f} GB" if abs(bytes_) >= GB else f"{bytes_ / (1 << 20):.1f} MB"
