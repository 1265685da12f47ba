"""What the errors mean that NVIDIA's driver reports of a GPU by number.

The numbers and their meanings are those of NVIDIA's catalogue, https://docs.nvidia.com/deploy/xid-errors; those that
spoil one program's context and leave the GPU as it is are, with two more, those that NVIDIA's device plugin for
Kubernetes takes for the program's own.
"""

from gen_worker_supervisor.core.happenings import DeviceFault

DOUBLE_BIT_ECC = "double bit ECC error"
RETIRES = {
    48: DOUBLE_BIT_ECC,
    62: "internal micro-controller halt",
    64: "ECC page retirement or row remapping could not be recorded",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "the GPU's system processor does not answer",
    120: "error of the GPU's system processor",
    140: "unrecovered ECC error",
    143: "the GPU could not be initialised",
    154: "the GPU needs to be reset",
}
SPOILS = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "the GPU stopped processing for a program",
    45: "preemptive cleanup after earlier errors",
    68: "video processor exception",
    69: "graphics engine class error",
    94: "contained ECC error",
    109: "context switch timeout",
}
NOTED = {
    32: "invalid or corrupted push buffer stream",
    38: "driver firmware error",
    61: "internal micro-controller warning",
    63: "ECC page retirement or row remapping recorded",
    92: "high rate of single bit ECC errors",
    110: "security fault",
}


def of_xid(device: str, number: int) -> DeviceFault:
    """Return what an error means for a device; one that is not known here is said, and nothing more."""
    known = RETIRES | SPOILS | NOTED
    meaning = f": {known[number]}" if number in known else ""
    return DeviceFault(device, f"XID {number}{meaning}", fatal=number in RETIRES)
