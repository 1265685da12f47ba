"""`gen-worker doctor`: what a person runs first on a new host, or when something is odd.

Looks, and changes nothing. Each check takes what it looks at and returns what it found; none imports torch or a
library of the GPU, which processes of their own do.
"""
