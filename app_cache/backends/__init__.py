"""Backends: each keeps strings under keys for a time, by its own means."""
