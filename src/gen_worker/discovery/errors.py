"""What is wrong with the author's project, told so that the author can mend it."""

from collections.abc import Iterable, Sequence


class DiscoveryError(ValueError):
    """The endpoints cannot be read: what is wrong, what to do, and the author's part of a traceback.

    `problems` are all that were found, each an error of its own; of a single one it is that one.
    """

    def __init__(
        self, message: str, hint: str = "", stack: Iterable[str] = (), problems: "Sequence[DiscoveryError]" = ()
    ) -> None:
        super().__init__(message)
        if hint:
            self.add_note(f"hint: {hint}")  # where nobody catches it
        self.message = message
        self.hint = hint
        self.stack = list(stack)
        self.problems = list(problems) or [self]

    @classmethod
    def of(cls, where: str, problems: "Sequence[DiscoveryError]") -> "DiscoveryError":
        """Return one error that tells all of them, each of them once."""
        unique = list({problem.message: problem for problem in problems}.values())
        if len(unique) == 1:
            return unique[0]
        told = [f"\n  {each.message}" + (f"\n    {each.hint}" if each.hint else "") for each in unique]
        stack = [line for each in unique for line in each.stack]
        return cls(f"{len(told)} problems in `{where}`:" + "".join(told), stack=stack, problems=unique)
