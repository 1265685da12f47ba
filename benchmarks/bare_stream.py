"""The floors of the link: processes that dial like a worker and have nothing behind them.

`python -m benchmarks.bare_stream ADDRESS echo` sends each message back as it came, over grpc.aio;
`python -m benchmarks.bare_stream ADDRESS answer` sends what a worker sends for a job: that it is accepted, its result.
Both end with the stream.
"""

import asyncio
import sys

import grpc

from gen_worker.pb import CONNECT
from gen_worker.pb.convert import decode_scheduler, encode_worker
from gen_worker.wire.scheduler import Hello, JobAccepted, JobMetrics, JobResult, JobStatus, RunJob

METRICS = JobMetrics(runtime_ms=1, queue_ms=1, peak_rss_bytes=30 << 20, concurrency_at_start=1)


async def main(address: str, answers: bool) -> None:
    """Serve one stream until its end."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(CONNECT)()
        await call.write(encode_worker(Hello(worker_id="bare")))
        await call.read()
        while (packet := await call.read()) is not grpc.aio.EOF:
            if not answers:
                await call.write(packet)
                continue
            run = decode_scheduler(packet)
            assert isinstance(run, RunJob)
            name, attempt = run.request_id, run.attempt
            await call.write(encode_worker(JobAccepted(request_id=name, attempt=attempt)))
            await call.write(encode_worker(result(name, attempt, run.input_payload)))


def result(name: str, attempt: int, output: bytes) -> JobResult:
    """Return a result as a worker's are."""
    return JobResult(request_id=name, attempt=attempt, status=JobStatus.OK, inline=output, metrics=METRICS)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "answer"))
