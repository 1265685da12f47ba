"""What an operator asks for a model by hand: it is set up, let go of, pinned or unpinned, and the answer says so.

Judgement is in `pinning`; nothing here waits, an answer comes when what was asked for is over.
"""

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol, assert_never

from msgspec.structs import replace

from gen_worker.wire.control import Model as ModelFrame
from gen_worker.wire.control import Modeled
from gen_worker_supervisor.core.happenings import Happening, LoadAsked, PinAsked, UnloadAsked
from gen_worker_supervisor.core.pinning import (
    end_of_load,
    holders,
    instances_of,
    kept_by_pins,
    meant,
    places_for,
    roomiest,
    unload_over,
)
from gen_worker_supervisor.core.state import Device, Fleet

_Tell = Callable[[Modeled], None]


class Host(Protocol):
    """The supervisor, as far as models need it."""

    fleet: Fleet

    def handle(self, *happenings: Happening) -> None:
        """Record what happened and perform what follows."""
        ...

    def look(self, over: Callable[[], bool]) -> None:
        """Call `over` now, and after whatever happens until it returns that what somebody waits for is over."""
        ...


class ModelVerbs:
    """Does what operators ask for models."""

    def __init__(
        self, supervisor: Host, clock: Callable[[], float] = time.monotonic, *, hide: Callable[[str], str] = str
    ) -> None:
        """`hide` takes the secrets out of what an author's code says."""
        self._supervisor = supervisor
        self._fleet = supervisor.fleet
        self._clock = clock
        self._hide = hide

    def perform(self, frame: ModelFrame, tell: _Tell) -> None:
        """Do what a frame asks; `tell` gets the one answer, now or when it is over."""
        found = meant(self._fleet, frame.ref)
        if not found.names:
            text = f"no function here needs `{frame.ref}`"
            tell(Modeled(frame.operation, frame.ref, "not_found", message=text, candidates=found.candidates))
            return
        devices = [each for each in self._fleet.devices if not frame.device or each.is_called(frame.device)]
        if not devices:
            names = [each.name for each in self._fleet.devices]
            text = f"no device `{frame.device}`"
            tell(Modeled(frame.operation, frame.ref, "not_found", message=text, candidates=names))
            return
        asked = _Asked(frame, found.names, devices, self._clock(), self._clock, partial(self._tell, tell))
        match frame.operation:
            case "load":
                self._load(asked)
            case "unload":
                self._unload(asked)
            case "pin" | "unpin":
                self._pin(asked, undo=frame.operation == "unpin")
            case _:
                assert_never(frame.operation)

    def _tell(self, tell: _Tell, told: Modeled) -> None:
        tell(replace(told, message=self._hide(told.message)) if told.message else told)

    # --- load ---

    def _load(self, asked: "_Asked") -> None:
        """Set up what an author bound to the model: on the device that is named, else on the one with most room."""
        able, why = places_for(self._fleet, asked.names, asked.devices)
        if not able:
            asked.fails(f"`{asked.frame.ref}` cannot be loaded{asked.where}: {why}")
            return
        there = [each for each in able if holders(self._fleet, asked.names, each)]
        if there:
            asked.ends(there)
            return
        device = roomiest(able)
        assert device is not None
        instances = instances_of(self._fleet, asked.names, on=device, bound=True)
        self._supervisor.handle(LoadAsked(frozenset(instances), device.name))
        self._supervisor.look(partial(self._load_is_over, asked, device, instances))

    def _load_is_over(self, asked: "_Asked", device: Device, instances: Collection[str]) -> bool:
        failed = end_of_load(self._fleet, instances, device, self._clock())
        if failed is None:
            return False
        if failed:
            asked.fails(failed, [device])
        else:
            asked.ends([device])
        return True

    # --- unload ---

    def _unload(self, asked: "_Asked") -> None:
        fleet = self._fleet
        instances = instances_of(fleet, asked.names)
        held = [each for each in asked.devices if each.child is not None and each.child.loaded.intersection(instances)]
        kept = kept_by_pins(fleet, instances, asked.devices)
        if kept:
            asked.fails(f"`{asked.frame.ref}` stays where it is: {kept}")
            return
        self._supervisor.handle(UnloadAsked(frozenset(instances), asked.frame.device))
        self._supervisor.look(partial(self._unload_is_over, asked, held, instances))

    def _unload_is_over(self, asked: "_Asked", held: list[Device], instances: Collection[str]) -> bool:
        over = self._fleet.finished or unload_over(instances, asked.devices)
        if over:
            asked.ends(held)
        return over

    # --- pin ---

    def _pin(self, asked: "_Asked", *, undo: bool) -> None:
        fleet = self._fleet
        before = [each for each in asked.devices if any((name, each.name) in fleet.pins for name in asked.names)]
        able, why = places_for(fleet, asked.names, asked.devices)
        if not undo and not able:
            asked.fails(f"`{asked.frame.ref}` cannot be pinned{asked.where}: {why}")
            return
        devices = before if undo else able
        self._supervisor.handle(PinAsked(asked.names, frozenset(each.name for each in devices), undo))
        asked.ends(devices)


class _Asked:
    """One wish, until it is answered."""

    def __init__(
        self,
        frame: ModelFrame,
        names: frozenset[str],
        devices: list[Device],
        began: float,
        clock: Callable[[], float],
        tell: _Tell,
    ) -> None:
        self.frame = frame
        self.names = names
        self.devices = devices
        self._began = began
        self._clock = clock
        self._tell = tell

    @property
    def where(self) -> str:
        """The device that was named, in words."""
        return f" on `{self.frame.device}`" if self.frame.device else ""

    def ends(self, devices: Collection[Device]) -> None:
        """It was done on these devices."""
        self._answer("", devices)

    def fails(self, message: str, devices: Collection[Device] = ()) -> None:
        """It was not done."""
        self._answer(message, devices)

    def _answer(self, message: str, devices: Collection[Device]) -> None:
        frame, names = self.frame, [each.name for each in devices]
        seconds = self._clock() - self._began
        self._tell(Modeled(frame.operation, frame.ref, "failed" if message else "done", names, seconds, message[:4096]))
