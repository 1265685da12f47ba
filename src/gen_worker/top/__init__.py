"""`gen-worker top`: every device, model and job of a supervisor on one screen.

Draws status documents and asks for more of them; what it shows it never works out itself.
"""
