"""The settings: whether they can be meant, which names are none, which tokens there are. Never what a token is."""

import time
from collections.abc import Sequence

from gen_worker.doctor.finding import Finding, ok, problem, skipped, warning
from gen_worker.settings import VARIABLES, Secret, Settings

SOON_S = 3600.0
_LEEWAY_S = 30.0


def settings(error: str, unknown: Sequence[str]) -> list[Finding]:
    """Whether they can be read: `error` is why not, `unknown` what is said of names that are none."""
    found = [problem("settings", error, "correct it: no command goes on with it")] if error else []
    found += [warning("settings", told, "correct the name, or remove it") for told in unknown]
    return found or [ok("settings", "every name that looks like one of a setting is one")]


def tokens(known: Settings, now: float | None = None) -> list[Finding]:
    """Which tokens are set, under which names, and how long they are good, where they say so."""
    now = time.time() if now is None else now
    names, found = [], []
    for field, variable in VARIABLES.items():
        token = getattr(known, field)
        if not isinstance(token, Secret) or not token:
            continue
        names.append(f"`{variable.names[0]}`")
        found += _lifetime(variable.names[0], str(token), now)
    if not names:
        return [skipped("tokens", "none is set")]
    return [ok("tokens", f"set: {', '.join(names)}"), *found]


def _lifetime(name: str, token: str, now: float) -> list[Finding]:
    from gen_worker.auth import claims

    said = claims(token)
    ends, begins = said.get("exp"), said.get("nbf", said.get("iat"))
    if isinstance(ends, int | float) and ends < now:
        return [problem("token", f"`{name}` expired {_length(now - ends)} ago", "get a new one")]
    if isinstance(begins, int | float) and begins > now + _LEEWAY_S:
        told = f"`{name}` is good in {_length(begins - now)} only"
        return [problem("token", told, "set the clock, if it is behind; else get another token")]
    if isinstance(ends, int | float) and ends - now < SOON_S:
        return [warning("token", f"`{name}` expires in {_length(ends - now)}", "get a new one in time")]
    if isinstance(ends, int | float):
        return [ok("token", f"`{name}` is good for {_length(ends - now)}")]
    return []


def _length(seconds: float) -> str:
    if seconds > 1000 * 365 * 86400:
        return "more than a thousand years"
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} seconds"
