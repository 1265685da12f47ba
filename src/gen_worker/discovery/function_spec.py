"""One row of the registry: everything that is known of a routable function before it is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from gen_worker.api.batch import Batch
from gen_worker.api.bindings import Binding
from gen_worker.api.decorator import Kind, Runtime
from gen_worker.api.resources import Resources
from gen_worker.wire.messages import Lane, Shape

if TYPE_CHECKING:
    from gen_worker.earlier.calling import EarlierFunction


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """One routable function."""

    name: str  # as it is routed
    python_name: str  # of the method or function
    module: str  # the top package that was walked
    declared_module: str
    class_name: str  # "" for a function endpoint
    kind: Kind
    runtime: Runtime | None
    resources: Resources
    bindings: Mapping[str, Binding]  # by slot
    shape: Shape
    payload_type: type[msgspec.Struct]  # of one request, where the handler takes a batch of them
    output_type: Any  # the Struct that is returned; of a stream the type, or the union of types, of its items
    owner: type | None  # the class to make an instance of
    function: Callable[..., Any]  # the plain function, or the class attribute, unbound
    instance: str  # "" where nothing is set up: a function without models; specs with the same value share one
    injected: tuple[str, ...]  # handler parameters after (ctx, payload) that take models
    setup_slots: tuple[str, ...]  # `setup()` parameters that take models
    earlier: "EarlierFunction | None" = None  # how it is called, where it is one of the earlier API
    batch: Batch | None = None  # how requests are put together: the handler takes and returns lists
    lane: Lane = field(init=False)
    """Whether jobs run one at a time on the device or many at once on the loop.

    Of a class with an engine server it is the server that uses the GPU, and takes many at once.
    """

    def __post_init__(self) -> None:
        own_gpu = self.resources.gpu and self.runtime is None
        on_loop = self.shape in ("async", "async_generator", "websocket") and not own_gpu
        object.__setattr__(self, "lane", "loop" if on_loop and self.batch is None else "device")
