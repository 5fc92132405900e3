"""A pytest plugin: a test that leaves something behind fails.

Compared are, before a test's fixtures are set up and after they are torn down:

- asyncio tasks of the test's loop (looked at before pytest-asyncio cancels what is left and so hides
  it);
- open sockets, pipes, files, memfds and namespace handles of this process;
- child processes;
- network namespaces with this run's pid in their name (`/run/netns`), and processes that were started
  by this run and live in another network namespace than ours;
- threads that are not daemons.

What a wider fixture (module, session) opens while it is set up belongs to it and counts at the end of
its module, not at the end of the test that happened to come first. While such a fixture has
processes or namespaces of its own (a cluster, say), those come and go with what the tests ask of it, so
they too are compared at the end of the module only.

Two things are given a moment (`PATIENCE_S`) before they count: what another thread or the kernel
closes after us, and connection handlers that see their peer's end one turn of the loop later.

gRPC keeps a poller for the life of the process: one daemon thread, a pair of Unix sockets, event
descriptors. They are made once, before the first test, by holding gRPC's own reference count up; from
then on they are there before and after every test. So is the one pipe for signals that libuv makes with
the first loop. Event descriptors (eventfd, epoll) are never
counted: they carry no connection, and a loop that was not closed shows by its other descriptors and
its ResourceWarning.
"""

import asyncio
import contextlib
import gc
import inspect
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 15.0
_MARK = "PODLINK_TEST_RUN"
"""In the environment of whatever this run starts, however far down."""
_NAMED_NAMESPACES = Path("/run/netns")
_UNCOUNTED = ("anon_inode:", "/dev/", "/proc/")
_PROCESSES = ("child process", "network namespace", "process in another network namespace")

Thing = tuple[str, str]
"""What kind of thing, and which."""


@dataclass
class _State:
    """What the plugin remembers between its hooks."""

    module: frozenset[Thing] | None = None
    test: frozenset[Thing] = frozenset()
    of_module: frozenset[Thing] = frozenset()
    of_session: frozenset[Thing] = frozenset()
    told: frozenset[Thing] = frozenset()
    """Left behind and said so: the next test is not to blame."""


_state = _State()


# --- what there is ----------------------------------------------------------------------------


def present() -> frozenset[Thing]:
    """Everything that could be left behind, now."""
    return frozenset([*_descriptors(), *_threads(), *_processes(), *_namespaces()])


def _descriptors() -> Iterator[Thing]:
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one of this very listing
            target = str(fd.readlink())
            if not target.startswith(_UNCOUNTED):
                yield "descriptor", f"{fd.name} ({target})"


def _threads() -> Iterator[Thing]:
    for thread in threading.enumerate():
        if not thread.daemon:
            yield "thread", thread.name


def _processes() -> Iterator[Thing]:
    """Children of ours, and processes of this run in a network namespace that is not ours."""
    own, home = os.getpid(), _network_namespace("self")
    mark = f"{_MARK}={own}\0".encode()
    for pid in filter(str.isdigit, (path.name for path in Path("/proc").iterdir())):
        with contextlib.suppress(OSError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")
            label = f"{pid} ({name.partition('(')[2]})"
            if int(rest.split()[1]) == own:
                yield "child process", label
            elif _network_namespace(pid) != home and mark in _environment(pid):
                yield "process in another network namespace", label


def _network_namespace(pid: str) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def _environment(pid: str) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes() + b"\0"


def _namespaces() -> Iterator[Thing]:
    """Named ones that are this run's: they have its pid in their name. All others are the machine's."""
    # A run within a run (tests/test_leaks.py) makes them in its parent's name.
    ours = {str(os.getpid()), str(os.getppid())}
    with contextlib.suppress(FileNotFoundError):
        for path in _NAMED_NAMESPACES.iterdir():
            if ours & set(re.findall(r"[0-9]+", path.name)):
                yield "network namespace", path.name


# --- when it is looked at ---------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    os.environ[_MARK] = str(os.getpid())


def pytest_collection_finish(session: pytest.Session) -> None:
    if "uvloop" in sys.modules and session.items:
        _warm_uvloop()
    if "grpc.aio" in sys.modules and session.items:
        _hold_grpc()


def _warm_uvloop() -> None:
    import uvloop

    uvloop.new_event_loop().close()


def _hold_grpc() -> None:
    import grpc.aio

    async def hold() -> None:
        grpc.aio.init_grpc_aio()

    asyncio.run(hold())


def pytest_itemcollected(item: pytest.Item) -> None:
    """Async tests get the look at tasks; as the first fixture it is the last to be torn down."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
        item.fixturenames.insert(0, "no_task_is_left")


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Fails the test whose tasks have not ended when its other fixtures are gone."""
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + PATIENCE_S
    while left := [t for t in asyncio.all_tasks() - before if t is not asyncio.current_task()]:
        if time.monotonic() > deadline:
            _fail("test", [("asyncio task", f"{t.get_name()}: {t.get_coro()}") for t in left])
        await asyncio.sleep(0.01)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    _state.test = present()
    if _state.module is None:
        _state.module = _state.test
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    if fixturedef.scope == "function":
        return (yield)
    before = present()
    try:
        return (yield)
    finally:
        opened = present() - before
        if fixturedef.scope in ("class", "module"):
            _state.of_module |= opened
        else:
            _state.of_session |= opened


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    try:
        return (yield)
    finally:
        over = nextitem is None or nextitem.path != item.path
        module, _state.module = _state.module, None if over else _state.module
        of_wider = _state.of_session if nextitem is not None else frozenset()
        if over:
            assert module is not None
            _state.of_module = frozenset()
            _demand("module", module | of_wider, ())
        else:
            owned = _state.of_module | of_wider
            skip = _PROCESSES if any(kind in _PROCESSES for kind, _ in owned) else ()
            _demand("test", _state.test | owned, skip)


def _demand(whose: str, allowed: frozenset[Thing], skip: tuple[str, ...]) -> None:
    """Fail unless nothing but `allowed` is there, within a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        left = [thing for thing in present() - allowed - _state.told if thing[0] not in skip]
        if not left:
            return
        if time.monotonic() > deadline:
            _state.told |= frozenset(left)
            _fail(whose, left)
        gc.collect()  # a cycle may hold what nobody uses any more
        time.sleep(0.02)


def _fail(whose: str, left: list[Thing]) -> None:
    lines = [f"{kind}: {which}" for kind, which in sorted(left)]
    pytest.fail(f"the {whose} left behind:\n  " + "\n  ".join(lines), pytrace=False)
