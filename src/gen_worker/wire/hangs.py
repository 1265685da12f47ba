"""The words for how a child hangs, as documents and errors have them, and what each of them means."""

from collections.abc import Mapping

HANGS: Mapping[str, str] = {
    "python_stuck": "its code waits for a lock",
    "gil_held": "something holds the interpreter's lock: no other Python thread of the child gets a turn",
    "native_wait": "it sleeps in a system call: for a pipe, a socket, a timer",
    "spin_no_progress": "it computes, or its device does, and gets nowhere",
    "kernel_D": "the kernel or a driver holds it: no signal reaches it",
    "stopped": "a SIGSTOP or a debugger has stopped it",
    "loading_slow": "it reads or writes: slow, and no hang",
    "unmeasurable": "`/proc` tells nothing of it",
}
