"""Status documents for screens: a host of eight GPUs in every state, one of 64, one of CPU slots, one with nothing."""

from gen_worker.wire.status import (
    DeviceStatus,
    DownloadStatus,
    EventStatus,
    FunctionStatus,
    JobStatus,
    LinkStatus,
    MemoryStatus,
    ModelStatus,
    Status,
)

GIB = 1 << 30
TIB = 1 << 40
NOW = 1_790_287_827.0  # 22:10:27 UTC
H100 = 80 * GIB

FLUX = ModelStatus("black-forest-labs/FLUX.1-dev", int(17.2 * GIB), "VRAM", "painter", "fp8")
LORA = ModelStatus("acme/detail-tweaker-lora", GIB // 5, "VRAM", "painter")
SDXL = ModelStatus("stabilityai/stable-diffusion-xl-base-1.0", int(6.9 * GIB), "VRAM", "sketcher")
VAE = ModelStatus("madebyollin/sdxl-vae-fp16-fix", GIB // 3, "VRAM", "sketcher", pinned=True)
WAN = ModelStatus("Wan-AI/Wan2.2-T2V-14B", int(33.4 * GIB), "VRAM", "filmer")
QWEN = ModelStatus("Qwen/Qwen2.5-VL-7B-Instruct", int(15.6 * GIB), "VRAM", "teller")


def eight_gpus() -> Status:
    """Return a host of eight GPUs on which nearly everything happens at once."""
    return Status(
        ts=NOW,
        host="gpu-node-07",
        version="0.7.0",
        pid=1,
        uptime_s=3 * 86400 + 4 * 3600 + 120,
        link=LinkStatus("connected", "orch.example.com:443", 12.0, 3600.0),
        cpu_percent=42.0,
        cpu_count=96,
        ram_used=181 * GIB,
        ram_total=512 * GIB,
        disk_used=int(1.61 * TIB),
        disk_total=int(1.86 * TIB),
        net_bps=579.0 * (1 << 20),
        gpus=_gpus(),
        jobs=_jobs(),
        downloads=_downloads(),
        events=_events(),
        functions=[
            FunctionStatus(name, "available")
            for name in ("generate.image", "video.render", "caption.image", "train.lora")
        ],
        memory=MemoryStatus(181 * GIB, 512 * GIB, 16 * GIB, "host"),
        jobs_done=12_850,
        jobs_failed=17,
        postmortems=4,
        ready=True,
    )


def gpu(index: int, state: str, used: float, util: float, temp: float, *models: ModelStatus) -> DeviceStatus:
    """Return a GPU of 80 GiB of which so many GiB are in use."""
    return DeviceStatus(
        index=index,
        uuid=f"GPU-{index:04x}c0de-9d1c-4e57-a4b0-1f2e3d4c5b6a",
        name=f"cuda:{index}",
        product="NVIDIA H100 80GB HBM3",
        pid=4100 + 27 * index,
        state=state,
        vram_used=int(used * GIB),
        vram_total=H100,
        vram_ours=int((used - 0.4) * GIB),
        vram_other=int(0.4 * GIB),
        util=util,
        temp=temp,
        power_w=90 + 560 * util,
        models=list(models),
        heartbeat_age_s=0.2 + 0.1 * index,
        age_s=3 * 86400.0,
        jobs_done=1600,
    )


def _gpus() -> list[DeviceStatus]:
    gpus = [
        gpu(0, "busy", 28.7, 0.91, 72, FLUX, LORA),
        gpu(1, "busy", 17.6, 0.91, 73, SDXL, VAE),
        gpu(2, "idle", 10.9, 0.0, 36, SDXL, VAE),
        gpu(3, "hung", 77.6, 1.0, 81, WAN),
        gpu(4, "loading", 20.8, 0.10, 39, QWEN),
        gpu(5, "restart", 0.4, 0.0, 36),
        gpu(6, "drain", 28.4, 0.85, 69, FLUX),
        gpu(7, "busy", 44.0, 0.93, 74, WAN),
    ]
    for index, job in enumerate(("6d13", "ee14", None, "2f2c", "e2a5", None, "fde3", "37ab")):
        gpus[index].job, gpus[index].jobs = job, int(job is not None)
    hung, loading, dead = gpus[3], gpus[4], gpus[5]
    hung.hang, hung.silent_s, hung.heartbeat_age_s, hung.restarts = "gil_held", 47.2, 47.2, 1
    hung.deaths = {"out_of_memory": 1}
    loading.loading, loading.loading_bytes, loading.loading_total = "teller", int(13.9 * GIB), int(15.6 * GIB)
    dead.pid, dead.heartbeat_age_s, dead.restart_in_s, dead.restarts = None, None, 1.2, 3
    dead.reason, dead.deaths = "host out of memory", {"host_out_of_memory": 3}
    gpus[6].drained = True
    return gpus


def job(id: str, function: str, gpu: int | None, progress: float | None, stage: str | None, tenant: str) -> JobStatus:
    """Return a job that runs on this GPU, or waits."""
    return JobStatus(
        id=id,
        function=function,
        status="queued" if gpu is None else "running",
        stage=stage,
        progress=progress,
        gpu=None if gpu is None else f"cuda:{gpu}",
        link="worker",
        tenant=tenant,
    )


def _jobs() -> list[JobStatus]:
    jobs = [
        job("6d13", "generate.image", 0, 0.39, "denoise 11/28", "acme"),
        job("ee14", "generate.image", 1, 0.60, "denoise 17/28", "studio-k"),
        job("2f2c", "video.render", 3, 0.62, "denoise 31/50", "nova"),
        job("e2a5", "caption.image", 4, 0.89, "loads weights", "acme"),
        job("fde3", "generate.image", 6, 0.86, "denoise 24/28", "acme"),
        job("37ab", "video.render", 7, 0.31, "denoise 9/28", "nova"),
        job("d244", "generate.image", None, None, None, "acme"),
        job("4bf5", "video.render", None, None, "downloading Wan-AI/Wan2.2-T2V-14B 30%", "nova"),
        job("c5a6", "train.lora", None, None, None, "studio-k"),
    ]
    spent = (3.5, 2.7, 362.0, 105.0, 7.7, 56.0, 30.0, 33.0, 35.0)
    left = (56.5, 57.3, 0.0, 15.0, 52.3, 544.0, 30.0, 567.0, 7165.0)
    for each, seconds, deadline_s in zip(jobs, spent, left, strict=True):
        each.deadline_s = deadline_s
        if each.status == "queued":
            each.queued_s, each.position = seconds, 1
        else:
            each.elapsed_s, each.queued_s = seconds, 0.4
    jobs[2].hang = "gil_held"
    jobs[6].starts_in_s = 4.0
    return jobs


def _downloads() -> list[DownloadStatus]:
    return [
        DownloadStatus(FLUX.ref, int(23.8 * GIB), int(23.8 * GIB), None, "verifying", ["generate.image"]),
        DownloadStatus(WAN.ref, int(9.9 * GIB), int(33.4 * GIB), 200.0 * (1 << 20), "downloading", ["video.render"]),
        DownloadStatus("civitai:827184@1.2", 0, int(6.6 * GIB), None, "queued", ["generate.image"], retries=2),
        DownloadStatus("Qwen/Qwen-Image", 0, int(40.9 * GIB), None, "queued", ["generate.image"]),
    ]


def _events() -> list[EventStatus]:
    told = [
        (339, "info", "supervisor", "started: 8 GPUs, 4 functions"),
        (337, "info", "link", "connected to orch.example.com:443 (TLS)"),
        (281, "info", "cuda:2", "`stabilityai/stable-diffusion-xl-base-1.0` resident: 6.9 GiB in 8.1 s"),
        (217, "warning", "models", "the disk is 87% full: `playgroundai/playground-v2` evicted, 14.2 GiB"),
        (148, "error", "cuda:5", "child 4127 died: host_out_of_memory; its job failed, a new child in 4.0 s"),
        (145, "info", "cuda:5", "child 4311 started"),
        (91, "info", "fetcher", "`black-forest-labs/FLUX.1-dev`: 23.8 GiB, two files at once"),
        (58, "warning", "cuda:3", "`2f2c` is past its deadline: 300 s; asked to end"),
        (43, "error", "cuda:3", "hangs: gil_held, nothing new for 4.0 s"),
    ]
    told += [(23 - 4 * n, "info", "cuda:1", f"`{id}` done in 4.5 s") for n, id in enumerate(("13ee", "8d9f", "0750"))]
    return [
        EventStatus(seq, NOW - ago, level, source, message)  # type: ignore[arg-type]
        for seq, (ago, level, source, message) in enumerate(told, 1)
    ]


def sixty_four_gpus() -> Status:
    """Return a host with more GPUs than lines."""
    status = eight_gpus()
    status.gpus = [
        gpu(index, "busy" if index % 3 else "idle", 8.0 + index, 0.01 * index, 36 + index / 2, SDXL)
        for index in range(64)
    ]
    return status


def cpu_slots() -> Status:
    """Return two CPU slots without a driver: there is nothing to say of VRAM, and nothing is."""
    slots = [
        DeviceStatus(None, None, f"cpu:{index}", 310 + index, "busy" if index else "idle", rss=(400 + 50 * index) << 20)
        for index in range(2)
    ]
    for slot in slots:
        slot.heartbeat_age_s = 0.3
    slots[1].job, slots[1].jobs = "local-0000002a", 1
    echo = JobStatus("local-0000002a", "echo", "running", elapsed_s=1.4, gpu="cpu:1", link="serve", progress=0.25)
    return Status(
        ts=NOW,
        host="laptop",
        version="0.7.0",
        pid=300,
        uptime_s=312.0,
        gpus=slots,
        jobs=[echo],
        functions=[FunctionStatus("echo", "available")],
        events=[EventStatus(1, NOW - 312, "info", "cpu:0", "child 310 started")],
        jobs_done=41,
        ready=True,
    )


def nothing_running() -> Status:
    """Return a host that has work to do for nobody, is short of memory and refuses a payload."""
    status = eight_gpus()
    status.gpus = [gpu(index, "idle", 0.4, 0.0, 36) for index in range(8)]
    status.jobs, status.downloads = [], []
    status.memory = MemoryStatus(500 * GIB, 512 * GIB, 16 * GIB, "host")
    status.quarantined = 1
    status.link = LinkStatus("connecting", "orch.example.com:443", None, 12.0)
    return status


def hostile() -> Status:
    """Return what an author could write to break a screen: escapes, markup, wide and invisible characters."""
    status = eight_gpus()
    evil = "\x1b[2J\x1b]0;owned\x07[bold red]絵文字を生成🎨\u202e\u200b\r\n\tz\u0301"
    for each in status.jobs:
        each.function = each.stage = each.tenant = evil
    for device in status.gpus:
        device.models = [ModelStatus(evil, GIB, "VRAM")]
        device.reason = device.product = evil
    for download in status.downloads:
        download.ref = evil
    for event in status.events:
        event.source = event.message = evil
    status.host = status.version = evil
    return status
