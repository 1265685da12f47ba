"""The pool game, as an endpoint."""
