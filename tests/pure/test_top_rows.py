"""What `gen-worker top` says of devices, jobs, downloads and the host, in words and not by colour alone."""

import pytest

from gen_worker.top import device_rows, job_rows
from gen_worker.top.cells import Line
from gen_worker.top.columns import GAP, widths
from gen_worker.top.detail import detail_lines
from gen_worker.top.device_rows import DeviceRow
from gen_worker.top.header import alarms
from gen_worker.top.history import History
from gen_worker.top.panels import attention, devices_title, download_lines, downloads_title, tab_at
from gen_worker.top.theme import DEVICES, JOBS
from gen_worker.wire.hangs import HANGS
from gen_worker.wire.status import (
    DeviceStatus,
    DownloadStatus,
    FunctionStatus,
    JobStatus,
    MemoryStatus,
    ModelStatus,
    Status,
)

GIB = 1 << 30
NARROW, MEDIUM, WIDE = 80, 116, 196


def device(state: str = "busy", **fields: object) -> DeviceStatus:
    known = {"vram_used": 20 * GIB, "vram_total": 80 * GIB, "util": 0.5, "heartbeat_age_s": 0.2}
    return DeviceStatus(0, "GPU-0", "cuda:0", 1, state, **{**known, **fields})  # type: ignore[arg-type]


def job(status: str = "running", **fields: object) -> JobStatus:
    return JobStatus("r1", "render", status, **{"gpu": "cuda:0", **fields})  # type: ignore[arg-type]


def document(*devices: DeviceStatus, jobs: list[JobStatus] | None = None, **fields: object) -> Status:
    return Status(1.0, "h", "1", 1, 1.0, gpus=list(devices), jobs=jobs or [], **fields)  # type: ignore[arg-type]


def words(line: Line) -> str:
    return "".join(text for text, _ in line)


def row(status: Status, room: int = NARROW) -> dict[str, str]:
    """Return the cells of the first device by their heads."""
    rows = [row for _, row in device_rows.device_rows(status, History())]
    columns = device_rows.columns_for(rows, room)
    found = zip(columns, widths(columns, room), strict=True)
    return {column.head: words(column.draw(rows[0], width)) for column, width in found}


def job_row(status: Status, room: int = 62) -> dict[str, str]:
    """Return the cells of the first job by their heads."""
    rows = [row for _, row in job_rows.job_rows(status, History())]
    columns = job_rows.columns_for(rows, room)
    found = zip(columns, widths(columns, room), strict=True)
    return {column.head: words(column.draw(rows[0], width)) for column, width in found}


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [80, 107, 108, 116, 172, 173, 176, 196, 236])
def test_the_columns_of_devices_fill_their_table_and_go_no_further(room: int) -> None:
    whole = device(temp=50, power_w=300, product="NVIDIA H100 80GB HBM3")
    slot = DeviceStatus(None, None, "cpu:0", 1, "idle")
    found = widths(device_rows.columns_for([DeviceRow(each, None, None, ()) for each in (whole, slot)], room), room)
    assert sum(found) + GAP * (len(found) - 1) == room


@pytest.mark.promise(7)
@pytest.mark.parametrize("hang", HANGS)
def test_a_hung_child_is_shown_with_how_it_hangs_at_every_width(hang: str) -> None:
    status = document(device("hung", hang=hang, job="r1"), jobs=[job(hang=hang)])
    for room in (NARROW, MEDIUM):
        assert row(status, room)["STATE"] == "✖ HUNG"
        assert row(status, room)["JOB"] == f"r1 {hang}"
    assert row(status, WIDE)["STATE"] == f"✖ HUNG {hang}"
    assert row(status, WIDE)["JOB"] == "r1 render"
    assert attention(status) == "1 needs attention"
    assert row(document(device("hung", hang=hang)))["JOB"] == hang


def test_every_state_has_a_glyph_and_a_word_of_its_own() -> None:
    for table in (DEVICES, JOBS):
        assert len({look.word for look in table.values()}) == len(table)
        assert all(look.glyph.strip() and look.word for look in table.values())
    assert row(document(device("something new")))["STATE"] == "· something new"


def test_a_device_that_is_to_take_no_jobs_says_whether_it_still_has_one() -> None:
    assert row(document(device("idle", drained=True)))["STATE"] == "◓ drained"
    assert row(document(device("busy", drained=True, job="r1")))["STATE"] == "◓ drain"
    assert row(document(device("hung", drained=True)))["STATE"] == "✖ HUNG"


def test_a_device_without_a_job_says_why() -> None:
    assert row(document(device("idle")))["JOB"] == "—"
    assert row(document(device("restart", restart_in_s=1.2, reason="no memory")))["JOB"] == "in 1.2s no memory"
    assert row(document(device("restart", restart_in_s=12, deaths={"SIGABRT": 2})))["JOB"] == "in 12s SIGABRT 2x"
    loading = device("loading", loading="painter", loading_bytes=GIB, loading_total=4 * GIB)
    assert row(document(loading))["JOB"] == "loads painter 25%"
    assert row(document(device("failed", reason="it dies at once")))["JOB"] == "it dies at once"


def test_what_is_slow_and_does_not_hang_is_shown_as_what_it_does() -> None:
    loads = device("loading", loading="painter", hang="loading_slow")
    assert row(document(loads))["JOB"] == "loads painter loading_slow"
    assert device_rows.hang_of(loads) == (("loading_slow", "yellow"),)
    unseen = device(job="r1", hang="unmeasurable")
    assert row(document(unseen, jobs=[job()]))["JOB"] == "r1 render"
    assert row(document(unseen, jobs=[job()]), WIDE)["STATE"] == "● busy unmeasurable"
    assert attention(document(loads, unseen)) == ""


@pytest.mark.parametrize("room", range(30, NARROW, 5))
def test_a_table_that_is_too_narrow_does_without_what_tells_least(room: int) -> None:
    status = document(device(temp=50, job="r1"), jobs=[job()])
    cells, jobs = row(status, room), job_row(status, room)
    assert list(cells)[:3] == ["", "GPU", "STATE"]
    assert cells["JOB"] == "r1 render"
    assert list(jobs)[:2] == ["ID", "FUNCTION"]
    assert "STATUS" in jobs
    for columns in (
        device_rows.columns_for([row for _, row in device_rows.device_rows(status, History())], room),
        job_rows.columns_for([row for _, row in job_rows.job_rows(status, History())], room),
    ):
        assert sum(column.least + GAP for column in columns) - GAP <= room


def test_both_tables_call_a_device_the_same_whether_a_job_runs_there_or_not() -> None:
    for names, head in ((["cuda:0", "cuda:1"], "GPU"), (["cpu:0"], "DEVICE")):
        for jobs in ([], [job("queued", gpu=None)], [job(gpu=names[0])]):
            rows = [row for _, row in job_rows.job_rows(document(jobs=jobs), History())]
            assert [column.head for column in job_rows.columns_for(rows, 80, names)][2] == head


def test_what_no_device_tells_has_no_column() -> None:
    slot = DeviceStatus(None, None, "cpu:0", 1, "idle", rss=400 << 20)
    assert list(row(document(slot))) == ["", "DEVICE", "STATE", "MEMORY", "JOB", "TIME/MAX", "♥", "↻"]
    assert row(document(slot))["MEMORY"] == "400 MiB"
    assert devices_title(document(slot)) == "Devices 1"
    assert "VRAM" in row(document(device(), slot))


def test_the_time_of_a_job_is_told_with_its_limit() -> None:
    def time(spent: float, left: float | None) -> Line:
        return device_rows.time_of(job(elapsed_s=spent, deadline_s=left), None if left is None else spent + left)

    assert time(10, None) == (("10s", "text"),)
    assert time(10, 50) == (("10s", "text"), ("/1m", "dim"))
    assert time(50, 10) == (("50s", "yellow"), ("/1m", "yellow"))
    assert time(50, 7150) == (("50s", "text"), ("/2h", "dim"))
    assert time(50, 7240) == (("50s", "text"), ("/2h01m", "dim"))
    late = job(elapsed_s=362, deadline_s=0.0)
    assert device_rows.time_of(late, 300) == (("6m02s/5m", "red"),)
    assert device_rows.time_of(late, None) == (("6m02s/over", "red"),)


@pytest.mark.parametrize("room", [NARROW, MEDIUM, WIDE])
def test_a_time_is_whole_however_long_it_is(room: int) -> None:
    long = job(elapsed_s=3541.0, deadline_s=29.0)
    status = document(device(job="r1"), jobs=[long])
    assert row(status, room)["TIME/MAX"] == "59m01s/59m30s"
    assert job_row(status)["TIME/MAX"] == "59m01s/59m30s"
    rows = [row for _, row in device_rows.device_rows(status, History())]
    time = next(column for column in device_rows.columns_for(rows, room) if column.head == "TIME/MAX")
    assert time.least == len("59m01s/59m30s")


def test_a_sign_of_life_that_is_late_is_yellow_and_then_red() -> None:
    beats = [device_rows.beat(device(heartbeat_age_s=age)) for age in (0.5, 2.0, 10.0, None)]
    assert beats == [(("0.5s", "dim"),), (("2.0s", "yellow"),), (("10s", "red"),), (("—", "dim"),)]


def test_memory_is_told_as_a_bar_and_as_numbers() -> None:
    full = device(models=[ModelStatus("a/b", 10 * GIB, "VRAM"), ModelStatus("c", 9 * GIB, "RAM")])
    assert row(document(full), MEDIUM)["VRAM"].split() == ["━╍────────", "20.0/80G"]


def test_names_of_models_are_cut_where_they_stay_telling() -> None:
    xl, other = ModelStatus("stabilityai/stable-diffusion-xl-base-1.0"), ModelStatus("acme/lora")
    assert row(document(device(models=[other])), MEDIUM)["MODELS"] == "lora"
    assert row(document(device(models=[xl, other])), MEDIUM)["MODELS"].endswith("1.0 +1")


def test_parts_of_gpus_are_called_by_both_numbers() -> None:
    part = device(mig="1g.10gb", product="NVIDIA A100", util=None)
    part.name = "cuda:1:2"
    cells = row(document(part), MEDIUM)
    assert (cells["GPU"], cells["NAME"]) == ("1:2", "A100")
    assert "UTIL" not in cells


def test_a_long_id_keeps_the_end_that_tells_it() -> None:
    status = document(device(job="local-0000002a"), jobs=[JobStatus("local-0000002a", "generate.image", "running")])
    assert row(status)["JOB"].startswith("…000002a")


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_that_waits_says_what_for() -> None:
    waits = job("queued", gpu=None, position=2, starts_in_s=8.0, stage="loading", queued_s=3.0)
    assert job_row(document(jobs=[waits]))["PROGRESS"] == "#2 loading"
    soon, next_ = job("queued", position=1, starts_in_s=8.0), job("queued", position=1)
    assert job_row(document(jobs=[soon]))["PROGRESS"] == "#1 starts in 8.0s"
    assert job_row(document(jobs=[next_]))["PROGRESS"] == "#1 waits for a device"
    assert job_row(document(jobs=[waits]))["STATUS"] == "○ queued"
    assert job_row(document(jobs=[waits]))["TIME/MAX"] == "3.0s"


@pytest.mark.promise(7)
def test_jobs_that_hang_or_are_late_stand_on_top() -> None:
    late, hung, slow = job(deadline_s=0.0), job(hang="gil_held"), job(hang="loading_slow")
    rows = [row for _, row in job_rows.job_rows(document(jobs=[job(), slow, late, hung]), History())]
    assert [row.state for row in rows] == ["overdue", "hung", "running", "running"]


def test_a_job_shows_how_far_it_is_and_with_what() -> None:
    far = job(progress=0.5, stage="denoise 14/28")
    assert words(device_rows.progress_of(far, 30)) == "━━━━───  50% denoise 14/28"
    assert words(device_rows.progress_of(far, 14)) == "━━━━─────  50%"
    assert words(device_rows.progress_of(job(stage="saves"), 14)) == "saves"


def test_tenants_have_a_column_where_there_are_any_and_room() -> None:
    assert "TENANT" not in job_row(document(jobs=[job()]), 100)
    assert "TENANT" in job_row(document(jobs=[job(tenant="acme")]), 100)
    assert "TENANT" not in job_row(document(jobs=[job(tenant="acme")]), 62)


def test_jobs_that_the_document_leaves_out_are_counted() -> None:
    assert job_rows.waiting(document(jobs=[job(), job("queued")], jobs_left_out=7)) == 8


# --- downloads, tabs, alarms ------------------------------------------------------------------------------------------


def test_a_download_is_told_with_speed_and_the_time_it_takes() -> None:
    half = DownloadStatus("a/b", 5 * GIB, 10 * GIB, float(GIB), "downloading", retries=1)
    named, far = download_lines([half])
    assert words(named(40)) == "a/b"
    assert words(far(60)) == "━━━━━━──────  50% 5.0/10G 1024 MiB/s 5.0s retried 1x"
    waits = DownloadStatus("c", 0, None, None, "queued")
    assert downloads_title(document(downloads=[half, waits])) == "Downloads · 1 active · 1 queued · 1024 MiB/s"
    assert words(download_lines([waits])[1](60)) == "────────────    ? 0 MiB queued"
    assert [words(line(60)) for line in download_lines([])] == ["nothing is downloaded"]


def test_the_names_of_the_panels_can_be_pointed_at() -> None:
    status = document(device())
    assert [tab_at(status, column) for column in (1, 9, 15, 27, 34, 79)] == [1, 1, 2, 3, 3, None]


def test_what_is_wrong_with_a_whole_host_is_said() -> None:
    assert alarms(document(memory=MemoryStatus(10, 100, 4, "host"))) == []
    scarce = MemoryStatus(used=95 * GIB, limit=100 * GIB, reserve=4 * GIB, source="cgroup")
    short = MemoryStatus(used=97 * GIB, limit=100 * GIB, reserve=4 * GIB, source="cgroup")
    assert alarms(document(memory=scarce)) == ["host memory is scarce: 5120 MiB of 100.0 GiB left"]
    assert alarms(document(memory=short)) == ["host memory is short: 3072 MiB of 100.0 GiB left"]
    told = alarms(document(quarantined=2, draining=True, functions=[FunctionStatus("f", "unavailable", "no GPU")]))
    assert told == ["draining: it takes no more jobs", "2 payloads are refused", "f is unavailable: no GPU"]


# --- the detail -------------------------------------------------------------------------------------------------------


def test_the_detail_of_a_device_accounts_for_its_memory() -> None:
    models = [ModelStatus("a/xl", 10 * GIB, "VRAM", rung="fp8"), ModelStatus("a/lora", GIB, "RAM", pinned=True)]
    shown = device(models=models, vram_ours=18 * GIB, vram_other=2 * GIB)
    told = [words(line(60)).split() for line in detail_lines(shown, document(shown), History(), 60)]
    amounts = {" ".join(each[:-3]): " ".join(each[-2:]) for each in told if len(each) > 3}
    assert amounts["xl fp8"] == "10.0 GiB"
    assert amounts["lora in RAM pinned"] == "1024 MiB"
    assert amounts["working memory"] == "8192 MiB"
    assert amounts["other programs, driver"] == "2048 MiB"
    assert amounts["free"] == "60.0 GiB"


@pytest.mark.promise(7)
def test_the_detail_of_a_hung_device_says_what_that_means() -> None:
    hung = device("hung", hang="gil_held", silent_s=47.0, deaths={"out_of_memory": 2}, restarts=2)
    told = " ".join(words(line(40)).strip() for line in detail_lines(hung, document(hung), History(), 40))
    assert f"gil_held, nothing new for 47.0s {HANGS['gil_held']}" in told
    assert "restarted 2x: out_of_memory 2" in told
