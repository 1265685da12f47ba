"""How the HTTP side of a control plane says no."""


class Refusal(Exception):
    """A request that is not done: its HTTP status, a word for programs, a sentence for people and what to do next.

    `retry_after_s`: when it may be asked again, where it is worth another try at all.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.hint = hint
        self.retry_after_s = retry_after_s
