"""Adapters: everything we know about one model family, in one file."""
