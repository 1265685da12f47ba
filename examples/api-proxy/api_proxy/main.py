"""Questions for the Acme API: no model, no GPU, many requests at once in one child.

`ACME_API_KEY` is the tenant's secret, `ACME_API_URL` where the API is.
"""

import asyncio
import os

import msgspec

from api_proxy.http import HttpAnswer, post
from gen_worker import FatalError, RequestContext, RetryableError, ValidationError, endpoint
from gen_worker.api import AuthError


class Question(msgspec.Struct):
    text: str
    timeout_s: float = 10.0


class Answer(msgspec.Struct):
    text: str
    in_flight: int  # how many questions Acme worked on when it answered this one


@endpoint
class Acme:
    def setup(self) -> None:
        self.url = os.environ.get("ACME_API_URL", "http://127.0.0.1:8900")
        self.key = os.environ.get("ACME_API_KEY", "")
        if not self.key:
            raise AuthError("`ACME_API_KEY` is not set")

    async def ask(self, ctx: RequestContext, payload: Question) -> Answer:
        left_s = ctx.time_remaining()
        limit_s = payload.timeout_s if left_s is None else min(payload.timeout_s, left_s)
        body = msgspec.json.encode({"text": payload.text})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(limit_s):
                answer = await post(f"{self.url}/v1/answers", body, headers)
        except TimeoutError as error:
            raise RetryableError(f"Acme did not answer within {limit_s:g} s") from error
        except OSError as error:
            raise RetryableError(f"Acme cannot be reached: {error}") from error
        return read(answer)


def read(answer: HttpAnswer) -> Answer:
    """Say in the words of the endpoint what Acme's status means."""
    match answer.status:
        case 200:
            return msgspec.json.decode(answer.body, type=Answer)
        case 401 | 403:
            raise AuthError(f"Acme refused the key: {answer.status}")
        case 429 | 500 | 502 | 503 | 504:
            raise RetryableError(f"Acme is busy: {answer.status}")
        case 400 | 422:
            raise ValidationError(f"Acme refused the question: {answer.body[:200].decode(errors='replace')}")
        case _:
            raise FatalError(f"Acme answered with status {answer.status}")
