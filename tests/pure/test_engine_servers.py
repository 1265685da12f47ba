"""How engine servers are described: commands, addresses, the file of a folder, what an author's class adds."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker import HF, RequestContext, Resources, endpoint
from gen_worker.api import ValidationError
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.specs import collect
from gen_worker.runtimes.launching import how
from gen_worker.runtimes.server import (
    RUNTIME_FACTORIES,
    ServerBootError,
    ServerHandle,
    ServerProcess,
    free_port,
    llama_server,
    vllm_server,
)
from gen_worker.wire.messages import SlotModel
from gen_worker_child.engines import Engines, _server


def test_the_commands_are_those_of_the_engines() -> None:
    vllm = vllm_server("/models/m", port=8001, extra_args=("--seed", "1"), boot_timeout_s=5)
    assert vllm.command == ["vllm", "serve", "/models/m", "--host", "127.0.0.1", "--port", "8001", "--seed", "1"]
    assert (vllm.health_url, vllm.base_url) == ("http://127.0.0.1:8001/health", "http://127.0.0.1:8001")
    assert vllm.boot_timeout_s == 5
    llama = llama_server("/models/m.gguf", port=8002)
    assert llama.command == ["llama-server", "-m", "/models/m.gguf", "--host", "127.0.0.1", "--port", "8002"]
    assert llama.boot_timeout_s == 600
    assert dict(RUNTIME_FACTORIES) == {"vllm": vllm_server, "llama-server": llama_server}


def test_each_server_gets_a_port_that_is_free() -> None:
    ports = {vllm_server("m").port, vllm_server("m").port, free_port()}
    assert all(1024 <= port < 65536 for port in ports)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["m.gguf"], "m.gguf"),
        (["config.json", "sub/m-Q4.gguf"], "sub/m-Q4.gguf"),
        (["m.gguf", "mmproj-m.gguf"], "m.gguf"),
        (["m-00002-of-00003.gguf", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "m-00001-of-00003.gguf"),
        (["m-00010-of-00011.gguf", "m-00001-of-00011.gguf", "m-00011-of-00011.gguf"], "m-00001-of-00011.gguf"),
    ],
)
def test_of_a_folder_the_engine_gets_its_model(tmp_path: Path, files: list[str], chosen: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert llama_server(tmp_path).command[2] == str(tmp_path / chosen)


@pytest.mark.parametrize(("files", "told"), [([], "has no gguf file"), (["a.gguf", "b.gguf"], "`a.gguf`, `b.gguf`")])
def test_a_folder_without_one_model_is_refused_with_what_it_has(tmp_path: Path, files: list[str], told: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ServerBootError, match=told) as refused:
        llama_server(tmp_path)
    assert "files=" in refused.value.hint


@pytest.mark.parametrize(
    ("health", "base", "port"),
    [
        ("http://127.0.0.1:80/health", "http://127.0.0.1:80", 80),
        ("http://localhost/", "http://localhost", 80),
        ("http://[::1]:9", "http://[::1]:9", 9),
        ("http://host:9?ready=1", "", 0),
    ],
)
def test_the_base_url_is_the_beginning_of_the_health_url(health: str, base: str, port: int) -> None:
    if not base:
        with pytest.raises(ValueError, match="health_url"):
            ServerProcess(["x"], health_url=health)
        return
    server = ServerProcess(["x"], health_url=health)
    assert (server.base_url, server.port) == (base, port)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/health",
        "127.0.0.1:80/health",
        "",
        "http://",
        "http://localhost:99999/",
        "http://localhost:0/",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"`health_url` (must be a URL like|has no port)"):
        ServerProcess(["x"], health_url=url)


def test_how_a_process_ended_is_said_in_a_word() -> None:
    assert [how(status) for status in (0, 3, -9, -6, -200, None)] == [
        "exit status 0",
        "exit status 3",
        "SIGKILL",
        "SIGABRT",
        "signal 200",
        "nobody knows how",
    ]


def test_an_error_shows_what_the_server_printed_last() -> None:
    error = ServerBootError("`vllm` ended", lines=["one", "two"], hint="look")
    assert str(error) == "`vllm` ended\n  one\n  two"
    assert (error.message, error.lines, error.hint) == ("`vllm` ended", ("one", "two"), "look")


def test_a_handle_of_any_process_stops_it_once() -> None:
    process = subprocess.Popen(["sleep", "60"])
    handle = ServerHandle("http://127.0.0.1:1", process)
    seen = [handle.alive]
    handle.stop(grace_s=5)
    handle.stop()
    assert [*seen, handle.alive] == [True, False]


def test_the_server_module_loads_nothing_heavy() -> None:
    heavy = "{'http', 'asyncio', 'urllib.request', 'torch', 'grpc', 'numpy'}"
    code = f"import sys, gen_worker.runtimes.server; sys.exit(str(sorted({heavy} & set(sys.modules)) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.stderr.strip() == ""


# --- of a class -------------------------------------------------------------------------------------------------------


class Ask(msgspec.Struct):
    text: str = ""


def spec_of(cls: Any) -> FunctionSpec:
    import types

    module = types.ModuleType("engined_here")
    cls.__module__ = module.__name__
    module.__dict__[cls.__name__] = cls
    sys.modules[module.__name__] = module
    try:
        (spec,) = collect(module)
    finally:
        del sys.modules[module.__name__]
    return spec


def class_with(runtime: Any, shape: str, arguments: tuple[object, ...] = (), **options: Any) -> FunctionSpec:
    class Talk:
        engine_args = arguments

        def setup(self, model: str, engine: "ServerHandle") -> None: ...

        if shape == "async":

            async def talk(self, ctx: RequestContext, payload: Ask) -> Ask:
                return payload
        else:

            def talk(self, ctx: RequestContext, payload: Ask) -> Ask:  # type: ignore[misc]
                return payload

    return spec_of(endpoint(model=HF("acme/m"), runtime=runtime, **options)(Talk))


def test_async_handlers_before_an_engine_run_many_at_once_although_it_uses_the_gpu() -> None:
    gpu = Resources(gpu=True)
    assert class_with("vllm", "async", resources=gpu).lane == "loop"
    assert class_with("vllm", "sync", resources=gpu).lane == "device"


@pytest.mark.parametrize(
    ("gpus", "arguments", "end"),
    [
        (1, (), []),
        (1, ("--max-model-len", 64), ["--max-model-len", "64"]),
        (4, (), ["--tensor-parallel-size", "4"]),
        (4, ("--tensor-parallel-size=2",), ["--tensor-parallel-size=2"]),
        (4, ("--pipeline-parallel-size", "4"), ["--pipeline-parallel-size", "4"]),
    ],
)
def test_vllm_is_told_of_its_gpus_and_of_what_the_class_adds(
    tmp_path: Path, gpus: int, arguments: tuple[object, ...], end: list[str]
) -> None:
    spec = class_with("vllm", "sync", arguments, resources=Resources(gpu_count=gpus))
    server = _server(spec, [SlotModel("model", "acme/m", str(tmp_path), "key")])
    assert server.command[2] == os.fspath(tmp_path)
    assert server.command[7:] == end


def test_an_engine_without_a_model_is_the_authors_mistake() -> None:
    spec = class_with("vllm", "sync")
    with pytest.raises(ValidationError, match='`runtime="vllm"` needs a model'):
        Engines().start("e", spec, [])
