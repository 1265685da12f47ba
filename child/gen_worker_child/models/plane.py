"""The models of one child: what goes into the slots of its instances, what they take of the device, who goes for whom.

Loading is one at a time. What is loaded is looked at first, then read, cast where it must be, and placed; nothing that
fails leaves anything behind.
"""

import shutil
import threading
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from gen_worker.api.context import RequestContext
from gen_worker.api.slots import asked
from gen_worker.capability import InsufficientVRAMError
from gen_worker.models import placement
from gen_worker.models.errors import ModelError
from gen_worker.models.rungs import EXACT, NEXT, Rung, Sizes
from gen_worker.wire.messages import Degraded, Loading, Resident, SlotModel, Tier, Warned
from gen_worker_child.models import memory_ladder
from gen_worker_child.models.ahead import ReadAhead
from gen_worker_child.models.derived import derive, derived_path, worth_deriving
from gen_worker_child.models.loading import Source, load, look_at, place_of
from gen_worker_child.models.memory_ladder import Remembered, Step
from gen_worker_child.models.pages import populate
from gen_worker_child.models.residency import Held, allowance, make_room, plan
from gen_worker_child.models.steps import watch_steps

if TYPE_CHECKING:
    from gen_worker_child.loop import Aside

REPORT_INTERVAL_S = 0.1
_UNBOUNDED = 1 << 62  # the host's memory: mapped weights are its page cache, and a guard watches the rest

T = TypeVar("T")


class Built(NamedTuple):
    """An object in a slot that was made of a model."""

    slot: SlotModel
    made: Any
    derived: str


@dataclass(slots=True)
class _Kept:
    """The models of one instance."""

    paths: list[SlotModel]
    built: list[Built]
    sizes: Sizes
    last_used: float
    leases: int = 0
    leaves: bool = False  # it is being let go of: no job may begin on it

    @property
    def rung(self) -> Rung:
        """The last rung that any of them is on; the author may have placed them, too."""
        return max((placement.rung_of(each.made) for each in self.built), key=list(Rung).index, default=Rung.OFF)


class Models:
    """The models that the instances of this child hold.

    Loads, unloads and makes room in one thread, where the hooks of instances run, too; everything else in any.
    """

    def __init__(
        self,
        *,
        device: str,
        budget_bytes: int = 0,
        margin_bytes: int = 0,
        derived: str = "",
        report: Callable[[Degraded | Loading | Warned], None] = lambda report: None,
    ) -> None:
        self.on_evict: Callable[[str], None] = lambda instance: None
        """Called with an instance that must go; its models are let go of when it returns."""

        self.current: Callable[[], RequestContext | None] = lambda: None
        """Returns the job that the calling thread runs, to which steps of pipelines are told."""

        self.pinned: Callable[[], Collection[str]] = lambda: ()
        """Returns the instances that go for no other, whatever that needs."""

        self._device = device
        self._budget_bytes = budget_bytes
        self._margin_bytes = margin_bytes
        self._derived = derived
        self._report = report
        self._kept: dict[str, _Kept] = {}
        self._remembered = Remembered()
        self._lock = threading.Lock()

    # --- what there is ---

    def residents(self, instance: str) -> list[Resident]:
        """Return what an instance holds; empty for one that was not loaded."""
        kept = self._kept.get(instance)
        if kept is None:
            return []
        on_disk = [Resident(slot.slot, slot.ref, "DISK", 0) for slot in kept.paths]
        return on_disk + [_resident(each) for each in kept.built]

    def rung(self, instance: str) -> str:
        """Return how an instance's pipelines are placed, as frames say it: empty where plainly on the device."""
        kept = self._kept.get(instance)
        return "" if kept is None else kept.rung.reported

    def _held(self) -> list[Held]:
        pinned = self.pinned()
        with self._lock:
            return [
                Held(
                    name,
                    kept.sizes.on_device(kept.rung),
                    kept.last_used,
                    kept.leases > 0,
                    tuple(one.slot.ref for one in kept.built) if name in pinned else (),
                )
                for name, kept in self._kept.items()
            ]

    # --- loading ---

    def load(self, instance: str, slots: Sequence[SlotModel], annotations: Mapping[str, object]) -> dict[str, object]:
        """Return what to inject into each slot, placed on the device.

        Raises `ModelError` for a model that cannot be loaded, `InsufficientVRAMError` where it would not fit, and what
        tells of memory that ran out in spite of it.
        """
        if not slots:
            return {}
        self.unload(instance)
        values, sources = self._look_at(slots, annotations)
        self._refuse_or_make_room(instance, list(sources.values()))
        news = _News(instance, list(sources.values()), self._report)
        configs = [Path(slot.path) for slot in slots if Path(slot.path, "model_index.json").is_file()]
        built: list[Built] = []
        try:
            for source in sources.values():
                built.append(self._built(source, configs, news))
            kept = self._placed(instance, built)
        except BaseException:
            _let_go(built)
            raise
        kept.paths = [slot for slot in slots if slot.slot not in sources]
        with self._lock:
            self._kept[instance] = kept
        for each in built:
            watch_steps(each.made, self._current)
        return values | {each.slot.slot: each.made for each in built}

    def _current(self) -> RequestContext | None:
        return self.current()

    def _look_at(
        self, slots: Sequence[SlotModel], annotations: Mapping[str, object]
    ) -> tuple[dict[str, object], dict[str, Source]]:
        """Return the paths that slots get, and the models to be built for the others."""
        values: dict[str, object] = {}
        sources: dict[str, Source] = {}
        for slot in slots:
            wish = asked(annotations.get(slot.slot))
            if wish.form == "built":
                sources[slot.slot] = source = look_at(slot, wish.built)
                self._warn(source.precision.note or self._slow(source))
            else:
                path = place_of(slot)
                values[slot.slot] = path if wish.form == "path" else str(path)
        return values, sources

    def _slow(self, source: Source) -> str:
        """Say what an author who tries a model without a GPU waits for."""
        if self._device != "cpu" or source.slot.dtype or source.precision.dtype != "fp16" or not source.files:
            return ""
        return f'`{source.slot.ref}` is stored as fp16, which takes a CPU about ten times as long as `dtype="bf16"`'

    def _built(self, source: Source, configs: Sequence[Path], news: "_News") -> Built:
        """Make one object, from a copy in its dtype when there is one, else leaving one behind where that pays."""
        if not worth_deriving(source):
            return Built(source.slot, self._read(source, configs, news), "")
        copy = derived_path(self._derived, source.slot, source.precision.dtype) if self._derived else None
        if copy is not None and (found := self._copied(source, copy)) is not None:
            return Built(source.slot, self._read(found, configs, news, counted_as=source), str(copy))
        made = self._read(source, configs, news)
        try:
            if copy is None:
                raise OSError("there is no folder for a copy")
            derive(made, source, copy)
        except OSError as error:
            self._warn(
                f"`{source.slot.ref}` is cast to {source.precision.dtype} at every load, since a copy of it in that "
                f"dtype cannot be kept: {error}"
            )
            return Built(source.slot, made, "")
        return Built(source.slot, made, str(copy))

    def _copied(self, source: Source, copy: Path) -> Source | None:
        """Return the copy of a model in its dtype, None when there is none to load from; a damaged one goes."""
        if not copy.is_dir():
            return None
        slot = msgspec.structs.replace(source.slot, path=str(copy), subfolder="", dtype=source.precision.dtype)
        try:
            return look_at(slot, source.target.cls)
        except ModelError as error:
            self._warn(
                f"the copy of `{source.slot.ref}` in {source.precision.dtype} is damaged, and made anew: {error}"
            )
            shutil.rmtree(copy, ignore_errors=True)  # what cannot be removed is told when the new one is made
            return None

    def _read(self, source: Source, configs: Sequence[Path], news: "_News", counted_as: Source | None = None) -> Any:
        with ReadAhead(source.files, news.of(counted_as or source)):
            made = load(source, configs, self._warn)
        populate(source.files)
        return made

    def _warn(self, text: str) -> None:
        if text:
            self._report(Warned(text))

    # --- room on the device ---

    def _refuse_or_make_room(self, instance: str, sources: Sequence[Source]) -> None:
        """Let go of others by what the headers say, before anything is read; raise where it cannot fit at all."""
        known = [source.sizes for source in sources if source.sizes is not None]
        if not known or len(known) < len(sources):
            return  # what was made tells
        pipelines = [source for source in sources if source.target.family == "pipeline"]
        total = sum(each.total for each in known)
        fixed = total - sum(source.sizes.total for source in pipelines if source.sizes)
        sizes = _joined([(each.sizes, True) for each in pipelines if each.sizes], fixed)
        refs = [source.slot.ref for source in sources]
        self._evict_for(instance, refs, sizes, EXACT if pipelines else frozenset((Rung.OFF,)))

    def _evict_for(
        self, instance: str, refs: Iterable[str], sizes: Sizes | None, possible: frozenset[Rung]
    ) -> tuple[Rung, str]:
        """Let go of as many others as this takes; return how it is placed then, and why."""
        held = self._held()
        free, margin = allowance(
            budget_bytes=self._budget_bytes,
            margin_bytes=self._margin_bytes,
            held=held,
            device_free_bytes=self._free_bytes(),
        )
        try:
            decided = plan(
                held,
                sizes,
                free_bytes=free,
                margin_bytes=margin,
                possible=possible,
                at_least=self._remembered.rung(instance, self._device),
            )
        except InsufficientVRAMError as error:
            raise InsufficientVRAMError(
                f"{', '.join(f'`{ref}`' for ref in dict.fromkeys(refs))}: {error}",
                available_bytes=error.available_bytes,
                required_bytes=error.required_bytes,
                hint=error.hint,
            ) from error
        for victim in decided.evict:
            self._evicted(victim)
        return decided.rung, decided.reason

    def _free_bytes(self) -> int:
        free = placement.free_bytes(self._device)
        return _UNBOUNDED if free is None else free

    def _evicted(self, instance: str) -> bool:
        """Let go of an instance, and say whether it went.

        It stays when a job has begun on it, or somebody has pinned it, since it was chosen.
        """
        with self._lock:
            kept = self._kept.get(instance)
            if kept is None or kept.leases or instance in self.pinned():
                return False
            kept.leaves = True
        self.on_evict(instance)
        self.unload(instance)
        return True

    def _placed(self, instance: str, built: list[Built]) -> _Kept:
        """Place what was made, on the first rung on which the device has room for it."""
        each = [(placement.sizes(one.made), placement.possible(one.made)) for one in built]
        fixed = sum(sizes.total for sizes, possible in each if Rung.GROUP_OFFLOAD not in possible)
        sizes = _joined([(size, Rung.GROUP_OFFLOAD in possible) for size, possible in each], fixed)
        rungs = EXACT & frozenset[Rung]().union(*(possible for _, possible in each)) or frozenset((Rung.OFF,))
        rung, reason = self._evict_for(instance, [one.slot.ref for one in built], sizes, rungs)
        if rung is not Rung.OFF:
            self._report(Degraded(instance, rung.value, reason))
        kept = _Kept([], built, sizes, time.monotonic())

        def place() -> None:
            for one in built:
                placement.place(one.made, _not_below(one.made, rung), self._device)

        memory_ladder.run(place, *self._ladder(instance, kept))
        return kept

    def _ladder(self, instance: str, kept: _Kept) -> tuple[Iterator[Step], Callable[[str, str], None], str]:
        """Return how room is made when the device runs out of memory for an instance."""

        def let_others_go(asked_bytes: int) -> Sequence[str]:
            others = [each for each in self._held() if each.instance != instance]
            return [victim for victim in make_room(others, max(1, asked_bytes)) if self._evicted(victim)]

        def report(step: str, message: str) -> None:
            self._remembered.note(instance, self._device, kept.rung)
            if step in tuple(Rung):
                self._report(Degraded(instance, step, message))
            else:  # it is placed as before
                self._warn(f"`{instance}`: {message}")

        models = [one.made for one in kept.built]
        return memory_ladder.standard_steps(models, self._device, make_room=let_others_go), report, self._device

    # --- use ---

    def retrying(self, instance: str, call: Callable[[], T]) -> T:
        """Return what the call returns; when the device runs out of memory, make room and call again.

        Raises what the call raises, `DeviceFullError` when nothing helped.
        """
        kept = self._kept.get(instance)
        return call() if kept is None else memory_ladder.run(call, *self._ladder(instance, kept))

    async def retrying_async(self, instance: str, call: Callable[[], Awaitable[T]], aside: "Aside") -> T:
        """Do the same for a coroutine function; room is made `aside`."""
        kept = self._kept.get(instance)
        if kept is None:
            return await call()
        return await memory_ladder.run_async(call, *self._ladder(instance, kept), aside=aside)

    def retrying_stream(self, instance: str, make: Callable[[], Generator[T, None, None]]) -> Generator[T, None, None]:
        """Do the same for a generator function, as long as no item has come."""
        kept = self._kept.get(instance)
        return make() if kept is None else memory_ladder.run_stream(make, *self._ladder(instance, kept))

    def retrying_async_stream(
        self, instance: str, make: Callable[[], AsyncGenerator[T, None]], aside: "Aside"
    ) -> AsyncGenerator[T, None]:
        """Do the same for an asynchronous one; room is made `aside`."""
        kept = self._kept.get(instance)
        if kept is None:
            return make()
        return memory_ladder.run_async_stream(make, *self._ladder(instance, kept), aside=aside)

    @contextmanager
    def leased(self, instance: str) -> Iterator[None]:
        """Keep an instance's models where they are while a job runs on them; raise `KeyError` when they have to go."""
        with self._lock:
            kept = self._kept[instance]
            if kept.leaves:
                raise KeyError(instance)
            kept.leases += 1
        try:
            yield
        except BaseException:
            if kept.leases == 1:  # else another job is at work in them
                for each in kept.built:
                    placement.reset(each.made)
            raise
        finally:
            with self._lock:
                kept.leases -= 1
                kept.last_used = time.monotonic()

    def unload(self, instance: str) -> None:
        """Let go of an instance's models: the device has their bytes back, whoever still refers to them."""
        with self._lock:
            kept = self._kept.pop(instance, None)
        if kept is not None:
            _let_go(kept.built)


def _resident(built: Built) -> Resident:
    """Say what an object takes of the device; one that comes there in parts, or has no weights, is in host memory."""
    rung = placement.rung_of(built.made)
    bytes_ = placement.sizes(built.made).on_device(rung)
    in_parts = rung in (Rung.MODEL_OFFLOAD, Rung.GROUP_OFFLOAD)
    tier: Tier = "VRAM" if bytes_ and not in_parts else "RAM"
    return Resident(built.slot.slot, built.slot.ref, tier, bytes_, built.derived)


def _joined(sizes: Sequence[tuple[Sizes, bool]], fixed_bytes: int) -> Sizes:
    """Add up what is placed together: `fixed_bytes` stay on the device whatever happens, the others may come and go."""
    moving = [each for each, offloads in sizes if offloads]
    return Sizes(
        fixed_bytes + sum(each.total for each in moving),
        fixed_bytes + max((each.component for each in moving), default=0),
        fixed_bytes // 2 + max((each.layer for each in moving), default=0),
    )


def _not_below(made: Any, rung: Rung) -> Rung:
    """Return the rung for an object: this one, where it can take it, or the later one that it is on already."""
    wanted = rung if rung in placement.possible(made) else Rung.OFF
    on = placement.rung_of(made)
    return on if wanted not in NEXT[on] else wanted


def _let_go(built: list[Built]) -> None:
    for each in built:
        placement.let_go(each.made)
    built.clear()


class _News:
    """How far a load is, told at most ten times a second and at its end."""

    def __init__(self, instance: str, sources: Sequence[Source], report: Callable[[Loading], None]) -> None:
        self._instance = instance
        self._report = report
        self._sizes = {source.slot.slot: sum(file.stat().st_size for file in source.files) for source in sources}
        self._done = dict.fromkeys(self._sizes, 0)
        self._due = 0.0

    def of(self, source: Source) -> Callable[[int, int], None]:
        """Return what counts the bytes of one model; a copy in another dtype counts for the one it was made of."""
        name = source.slot.slot

        def count(done: int, total: int) -> None:
            self._sizes[name], self._done[name] = total, done
            now, all_done, all_bytes = time.monotonic(), sum(self._done.values()), sum(self._sizes.values())
            if now >= self._due or all_done == all_bytes:
                self._due = now + REPORT_INTERVAL_S
                self._report(Loading(self._instance, all_done, all_bytes))

        return count
