"""Plugins for every test. They stand at the root because pytest calls the hooks of a folder's conftest
only for what lies in that folder, and a session's fixtures lie in none.
"""

from kit import tls13 as _tls13  # noqa: F401 - before any test imports grpc

pytest_plugins = ["pytester", "tests.leaks", "tests.limits"]
