"""The only place that starts asyncio tasks.

`asyncio.create_task` keeps only a weak reference, so a task may vanish in mid-flight, and an
exception in it is reported when the garbage collector comes by, if at all. `spawn` keeps a
reference, gives the task a name and logs its failure at once.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Start `work` as a task called `name` and return it.

    A failure is logged with its traceback; whoever awaits the task still gets the exception.
    """
    task = asyncio.create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel the tasks and wait until each has ended. Their own errors were logged already."""
    living = [task for task in tasks if task is not None]
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("task failed", extra={"task": task.get_name()}, exc_info=error)
