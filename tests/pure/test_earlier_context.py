"""What an earlier function is handed: its run, its end, its news and its files, in the words of the earlier API."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker import Asset
from gen_worker.api.context import CancelFlag, FolderSink, RequestContext
from gen_worker.earlier.context import ActionContext
from gen_worker.wire.messages import EarlierRun


def running(folder: Path, events: list[dict[str, Any]], **more: Any) -> ActionContext:
    """Return the context of a job with the id `r1`, as a child makes it."""
    request = RequestContext(request_id="r1", emitter=events.append, sink=FolderSink(folder, 100), **more)
    return ActionContext.of(request)


def test_it_says_who_asked_and_how_long_the_run_may_take(tmp_path: Path) -> None:
    request = RequestContext(request_id="r1", timeout_s=60.0)
    request._earlier = EarlierRun("t1", "u1", 60_000)
    ctx = ActionContext.of(request)
    assert (ctx.run_id, ctx.tenant_id, ctx.user_id, ctx.timeout_ms) == ("r1", "t1", "u1", 60_000)
    assert ctx.deadline is not None
    assert abs(ctx.deadline - time.time() - 60) < 5
    assert 0 < (ctx.time_remaining_s() or 0) <= 60
    unsaid = ActionContext("r2")
    assert (unsaid.tenant_id, unsaid.user_id, unsaid.timeout_ms, unsaid.deadline) == (None, None, None, None)
    assert unsaid.time_remaining_s() is None


def test_a_run_that_is_asked_to_end_says_so_in_each_way(tmp_path: Path) -> None:
    flag = CancelFlag()
    ctx = running(tmp_path, [], cancel=flag)
    done = ctx.done()
    assert isinstance(done, threading.Event)
    assert (ctx.is_canceled(), done.is_set(), done.wait(0.01)) == (False, False, False)
    threading.Timer(0.02, flag.set).start()
    assert done.wait(10)
    assert ctx.is_canceled()
    own = ActionContext("r2")
    own.cancel()
    assert own.done().is_set()


def test_news_of_a_job_go_where_those_of_any_job_go(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    ctx = running(tmp_path, events)
    ctx.progress(0.5, "half")
    ctx.log("careful", "warn")
    ctx.emit("job.progress", {"progress": 1})
    ctx.emit("my.event", {"a": 1})
    told = [(event["type"], event["payload"]) for event in events]
    assert told[:3] == [
        ("request.progress", {"progress": 0.5, "stage": "half"}),
        ("request.log", {"message": "careful", "level": "warning"}),
        ("request.progress", {"progress": 1.0}),
    ]
    assert told[3][0] == "request.log"
    assert (told[3][1]["type"], told[3][1]["payload"]) == ("my.event", {"a": 1})


def test_an_authors_test_sees_events_as_the_earlier_api_has_them() -> None:
    events: list[dict[str, Any]] = []
    ctx = ActionContext("r1", emitter=events.append)
    ctx.progress(0.25)
    ctx.log("hello")
    ctx.emit("my.event")
    assert [(event["run_id"], event["type"], event["payload"]) for event in events] == [
        ("r1", "job.progress", {"progress": 0.25}),
        ("r1", "job.log", {"message": "hello", "level": "info"}),
        ("r1", "my.event", {}),
    ]
    assert all(isinstance(event["timestamp"], float) for event in events)


def test_a_short_name_lies_among_the_outputs_of_its_run(tmp_path: Path) -> None:
    ctx = running(tmp_path, [])
    asset = ctx.save_bytes("output.png", b"one")
    assert asset.ref == "runs/r1/outputs/output.png"
    assert ctx.save_bytes_overwrite("runs/r1/outputs/output.png", b"two").local_path == asset.local_path
    assert asset.read_bytes() == b"two"
    for elsewhere in ("runs/r2/outputs/x", "../x", "", "https://example.com/x"):
        with pytest.raises(ValueError, match=r"ref|below"):
            ctx.save_bytes(elsewhere, b"x")


def test_what_is_created_must_not_be_there(tmp_path: Path) -> None:
    ctx = running(tmp_path, [])
    source = tmp_path / "source"
    source.write_bytes(b"file")
    ctx.save_bytes_create("a", b"one")
    ctx.save_file_create("b", source)
    with pytest.raises(RuntimeError, match="already exists"):
        ctx.save_bytes_create("a", b"two")
    with pytest.raises(RuntimeError, match="already exists"):
        ctx.save_file_create("b", source)
    assert ctx.save_file_overwrite("a", source).read_bytes() == b"file"
    assert not list(tmp_path.rglob(".saving-*"))


def test_more_bytes_than_are_allowed_are_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the limit is 100"):
        running(tmp_path, []).save_bytes("a", b"x" * 101)


@pytest.mark.needs("torch")
def test_the_device_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_DEVICE", "meta")
    assert str(ActionContext("r1").device) == "meta"


# --- assets -----------------------------------------------------------------------------------------------------------


def test_an_asset_has_the_methods_of_both_generations(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    asset = Asset("a", "t1", str(path), "text/plain", 3, hashlib.sha256(b"abc").hexdigest())
    assert asset.tenant_id == asset.owner == "t1"
    asset.tenant_id = "t2"
    assert asset.owner == "t2"
    with asset.open() as file:
        assert file.read() == b"abc"
    assert asset.exists()
    assert asset.read_bytes(3) == b"abc"
    with pytest.raises(ValueError, match="limit is 2"):
        asset.read_bytes(max_bytes=2)
    with pytest.raises(ValueError, match="binary mode"):
        asset.open("r")
    assert not Asset("a").exists()
    assert "tenant_id" not in msgspec.to_builtins(asset)
