"""The links' messages as bytes: code that `make proto` writes from the protos here, and what is around it.

`import gen_worker` loads none of this.
"""

SERVICE = "cozy.scheduler.WorkerScheduler"
CONNECT = f"/{SERVICE}/Connect"  # the one method: a stream of `WorkerMessage` against one of `SchedulerMessage`
EARLIER_SERVICE = "scheduler.SchedulerWorkerService"
EARLIER_CONNECT = f"/{EARLIER_SERVICE}/ConnectWorker"  # the one method: `WorkerSchedulerMessage` both ways
