"""HTTP for machines: probes, the status document and metrics, served by a process of its own.

It is a client of a supervisor's control socket, like any other: whatever its own clients do, the supervisor's loop has
nothing to do with them.
"""
