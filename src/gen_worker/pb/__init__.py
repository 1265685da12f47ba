"""The link's messages as bytes: code that `make proto` writes from `worker_scheduler.proto`, and `convert` around it.

`import gen_worker` loads none of this.
"""

SERVICE = "cozy.scheduler.WorkerScheduler"
CONNECT = f"/{SERVICE}/Connect"  # the one method: a stream of `WorkerMessage` against one of `SchedulerMessage`
