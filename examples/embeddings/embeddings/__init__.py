"""Sentence similarity, as an endpoint."""
