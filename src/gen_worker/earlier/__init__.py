"""The earlier API for authors: functions marked with `@worker_function()`, on the registry and runtime of endpoints.

Its names are imported from `gen_worker`. Nothing here runs a job: an earlier function is described as any other, and
what it is handed is made of what any handler is given.
"""
