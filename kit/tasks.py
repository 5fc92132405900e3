"""The only place that starts asyncio tasks.

`asyncio.create_task` keeps only a weak reference, so a task may vanish in mid-flight, and an
exception in it is reported when the garbage collector comes by, if at all. `spawn` keeps a
reference, gives the task a name and logs its failure at once. A process that cannot do its work
without a task starts it as `vital` and waits for `vital_task_died` too: better to end, with the reason,
and be started again than to live on by half.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()
_waiting_for_death: "set[asyncio.Future[TaskDied]]" = set()


class TaskDied(Exception):
    """A vital task has failed; the process must end."""


def spawn(work: Coroutine[Any, Any, T], *, name: str, vital: bool = False) -> asyncio.Task[T]:
    """Start `work` as a task called `name` and return it.

    A failure is logged with its traceback; whoever awaits the task still gets the exception. With
    `vital`, it also ends `vital_task_died`.
    """
    task = asyncio.create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    if vital:
        task.add_done_callback(_tell_death)
    return task


async def vital_task_died() -> TaskDied:
    """Wait until a vital task that runs now or later fails, and return what happened. A task that is
    cancelled, or returns, has not failed."""
    death: asyncio.Future[TaskDied] = asyncio.get_running_loop().create_future()
    _waiting_for_death.add(death)
    try:
        return await death
    finally:
        _waiting_for_death.discard(death)


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel the tasks and wait until each has ended. Their own errors were logged already."""
    living = [task for task in tasks if task is not None]
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)


def _tell_death(task: asyncio.Task[Any]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    died = TaskDied(f"the task '{task.get_name()}' failed: {type(error).__name__}: {error}")
    for death in list(_waiting_for_death):
        if not death.done() and death.get_loop() is task.get_loop():
            death.set_result(died)


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("task failed", extra={"task": task.get_name()}, exc_info=error)
