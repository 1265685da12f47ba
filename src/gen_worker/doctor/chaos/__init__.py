"""Break things on this host and see which promises hold: real children of a supervisor that is there for nothing else.

Everything is injected and observed from outside: through the client, through sockets, and in `/proc`.
"""
