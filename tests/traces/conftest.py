"""Lends the real trace store to the tests in this folder."""

from tests.traces.process import store

__all__ = ["store"]
