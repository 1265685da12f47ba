"""How much is sent at once, how often something is tried again, and how long is waited."""

import random
from collections.abc import Callable

import msgspec

from gen_worker.fetch.network.patience import Patience


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """All times and limits of uploads."""

    files: int = 4
    lent_keys_files: int = 2
    """Of those files, the ones that go to a bucket with lent keys."""

    parts_of_a_file: int = 4
    parts: int = 8
    """Of all files together."""

    object_part_bytes: int = 64 << 20
    """Of an object of a bucket; one that is no longer is put at once."""

    part_tries: int = 5
    shortest_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    create_tries: int = 3
    complete_tries: int = 5
    ask_again_s: float = 0.5
    """Between two tries to create or complete."""

    poll_s: float = 5.0
    poll_for_s: float = 600.0
    """For a store that says that it is still completing."""

    connect_s: float = 30.0
    quiet_s: float = 120.0
    slow_bytes_per_s: int = 16 << 10
    """A part that goes slower over `quiet_s` is tried again: eight at once need 1 Mbit/s."""

    complete_s: float = 600.0
    finalize_s: float = 1800.0
    """For a platform that makes a revision visible."""

    longest_poll_s: float = 15.0
    """Between two questions whether that is done, unless the platform names a pause."""

    farewell_s: float = 5.0
    """For a store that is told that an upload is given up."""

    chance: Callable[[float, float], float] = random.uniform

    def patience(self, quiet_s: float) -> Patience:
        """Return the patience for one request whose answer may take so long."""
        return Patience(
            connect_s=min(self.connect_s, quiet_s),
            quiet_s=quiet_s,
            head_s=quiet_s,
            slow_s=quiet_s,
            slow_bytes_per_s=self.slow_bytes_per_s,
        )


def pause_after(failures: int, pace: Pace) -> float:
    """Return the seconds before a part is tried again after so many failures."""
    longest = min(pace.longest_pause_s, pace.shortest_pause_s * 3.0 ** min(failures, 30))
    return pace.chance(pace.shortest_pause_s, longest)


def may_pass(status: int) -> bool:
    """Whether another try may get another answer than this status."""
    return status == 429 or status >= 500
