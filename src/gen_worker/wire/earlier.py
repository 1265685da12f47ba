"""What a worker and an orchestrator of the earlier generation say to each other, as values.

Field meanings are those of `gen_worker/pb/scheduler.proto`. One envelope travels both ways.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from gen_worker.secret import without

MESSAGE_BYTES = 64 << 20  # the longest message either way


class FunctionSchema(msgspec.Struct, frozen=True, kw_only=True):
    """One routable function and its types."""

    name: str
    input_schema_json: bytes = b""
    output_schema_json: bytes = b""
    injection_json: bytes = b""
    incremental_output: bool = False
    delta_schema_json: bytes = b""


class WorkerResources(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a worker says of itself."""

    worker_id: str
    cpu_cores: int = 0
    memory_bytes: int = 0
    gpu_count: int = 0
    gpu_memory_bytes: int = 0
    available_functions: tuple[str, ...] = ()
    vram_models: tuple[str, ...] = ()
    supports_model_loading: bool = False
    deployment_id: str = ""
    runpod_pod_id: str = ""
    gpu_is_busy: bool = False
    gpu_memory_used_bytes: int = 0
    gpu_name: str = ""
    gpu_driver: str = ""
    gpu_memory_free_bytes: int = 0
    max_concurrency: int = 0
    function_concurrency: Mapping[str, int] = {}
    cuda_version: str = ""
    torch_version: str = ""
    function_schemas: tuple[FunctionSchema, ...] = ()
    gpu_sm: str = ""
    tensorrt_version: str = ""
    onnxruntime_version: str = ""
    disk_models: tuple[str, ...] = ()


class WorkerRegistration(msgspec.Struct, frozen=True, kw_only=True):
    """The first message of a stream, and again every few seconds."""

    resources: WorkerResources
    is_heartbeat: bool = False


class TaskExecutionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Run a function once; the payload is msgpack."""

    run_id: str
    function_name: str = ""
    input_payload: bytes = b""
    required_models: tuple[str, ...] = ()
    timeout_ms: int = 0
    tenant_id: str = ""
    user_id: str = ""
    file_base_url: str = ""
    file_token: str = ""

    def __repr__(self) -> str:
        """Leave out the token and the payload."""
        return without(self, "file_token", "input_payload")


class TaskExecutionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended; the output is msgpack."""

    run_id: str
    success: bool = False
    output_payload: bytes = b""
    error_message: str = ""
    error_type: str = ""
    retryable: bool = False
    safe_message: str = ""


class WorkerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a run says of itself or makes piece by piece; the payload is JSON."""

    run_id: str
    event_type: str
    payload_json: bytes = b"{}"


class LoadModelCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Have a model on a device."""

    model_id: str


class UnloadModelCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Have a model on no device."""

    model_id: str


class InterruptTaskCommand(msgspec.Struct, frozen=True, kw_only=True):
    """End a run."""

    run_id: str


class LoadModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a `LoadModelCommand`."""

    model_id: str
    success: bool
    error_message: str = ""


class UnloadModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an `UnloadModelCommand`."""

    model_id: str
    success: bool
    error_message: str = ""


class DeploymentModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which models the deployment may use, none named: any; and which ids its functions' keys mean."""

    supported_model_ids: tuple[str, ...] = ()
    model_id_by_key: Mapping[str, str] = {}


class RealtimeOpenCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A peer wants to speak with a realtime function."""

    session_id: str
    function_name: str = ""
    required_models: tuple[str, ...] = ()
    tenant_id: str = ""
    user_id: str = ""
    timeout_ms: int = 0
    file_base_url: str = ""
    file_token: str = ""

    def __repr__(self) -> str:
        """Leave out the token."""
        return without(self, "file_token")


class RealtimeFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a realtime session, either way."""

    session_id: str
    data: bytes = b""
    is_text: bool = False


class RealtimeCloseCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A realtime session is over, whoever ended it."""

    session_id: str
    reason: str = ""


class SpawnTasksRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A run wants others to be run; no worker of this kind sends it."""

    parent_run_id: str
    child_tasks: tuple[TaskExecutionRequest, ...] = ()


Order: TypeAlias = (
    TaskExecutionRequest
    | LoadModelCommand
    | UnloadModelCommand
    | InterruptTaskCommand
    | DeploymentModelConfig
    | RealtimeOpenCommand
    | RealtimeFrame
    | RealtimeCloseCommand
)
"""What an orchestrator sends."""

Report: TypeAlias = (
    WorkerRegistration
    | TaskExecutionResult
    | LoadModelResult
    | UnloadModelResult
    | WorkerEvent
    | RealtimeFrame
    | RealtimeCloseCommand
    | SpawnTasksRequest
)
"""What a worker sends."""

Message: TypeAlias = Order | Report
