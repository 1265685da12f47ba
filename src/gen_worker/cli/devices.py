"""The devices that a person names, and what is said of them."""

from collections.abc import Sequence

from gen_worker.cli.failure import NOT_FOUND, Failure, nearest
from gen_worker.wire.status import DeviceStatus, JobStatus, MemberStatus

_NAMED = 3


def named(device: str, known: Sequence[DeviceStatus]) -> DeviceStatus | None:
    """Return the device that a person means by one of its names, or by the number of a CPU slot."""
    meant = [each for each in known if device in names_of(each)]
    return next(iter(meant or [each for each in known if f"cpu:{device}" in names_of(each)]), None)


def names_of(device: DeviceStatus) -> list[str]:
    """Return what a person may call a device: its name, its index, its UUID; a group by any of its members, too."""
    names = [] if device.index is None else [number(device)]
    known: list[DeviceStatus | MemberStatus] = [device, *device.members]
    for each in known:
        names += [each.name, *([] if each.index is None else [each.name.removeprefix("cuda:"), str(each.index)])]
        names += filter(None, [each.uuid])
    return list(dict.fromkeys(names))


def number(device: DeviceStatus) -> str:
    """Return by which numbers NVML knows a device: `0`, of a group `0+1`; nothing for CPU slots."""
    if device.members:
        return "+".join(str(member.index) for member in device.members if member.index is not None)
    return "" if device.index is None else str(device.index)


def no_device(device: str, candidates: Sequence[str]) -> Failure:
    """Return how a command ends that was given a device which is not there."""
    near = nearest(device, candidates)
    listed = ", ".join(f"`{each}`" for each in candidates)
    return Failure(
        f"no device `{device}`", f"did you mean `{near}`?" if near else f"there are: {listed}", code=NOT_FOUND
    )


def running_on(devices: Sequence[DeviceStatus], jobs: Sequence[JobStatus]) -> list[JobStatus]:
    """Return the jobs that these devices have to end."""
    names = {name for device in devices for name in names_of(device)}
    return [job for job in jobs if job.gpu in names]


def described(running: Sequence[JobStatus]) -> str:
    """Return in words which requests a child has yet to end, and how they hang."""
    told = ", ".join(f"`{job.id}`" + (f" (hangs: {job.hang})" if job.hang else "") for job in running[:_NAMED])
    more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
    return f"{told}{more} {'ends' if len(running) == 1 else 'end'}"


def counted(running: Sequence[JobStatus]) -> str:
    """Return in words how many requests there are."""
    return "1 request" if len(running) == 1 else f"{len(running)} requests"
