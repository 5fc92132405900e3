"""Helm itself renders the chart, in a process of its own; a rendering is kept for the session."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from scripts.helm import CHART, LIBRARY, ROOT, HelmRefused, Rendered

Render = Callable[..., Rendered]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def helm() -> Iterator[Ask]:
    """Ask Helm to lint or render; raises HelmRefused."""
    if not LIBRARY.exists():
        pytest.skip("Helm is not here: make .helm/.ready (its wheel is for x86-64 and arm64 Linux)")
    worker = subprocess.Popen(
        [sys.executable, "-m", "scripts.helm", "serve"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert worker.stdin is not None and worker.stdout is not None
    to, back = worker.stdin, worker.stdout

    def ask(**asked: Any) -> dict[str, Any]:
        to.write(json.dumps(asked) + "\n")
        to.flush()
        found: dict[str, Any] = json.loads(back.readline())
        if "refused" in found:
            raise HelmRefused(found["refused"])
        return found

    yield ask
    to.close()
    worker.wait(10)
    back.close()


@pytest.fixture(scope="session")
def rendered(helm: Ask) -> Render:
    kept: dict[str, Rendered] = {}

    def made(values: Mapping[str, Any] | None = None, **how: Any) -> Rendered:
        key = json.dumps([values, how], sort_keys=True)
        if key not in kept:
            found = helm(what="render", values=dict(values or {}), **how)
            kept[key] = Rendered(**found["rendered"])
        return kept[key]

    return made


assert CHART.is_dir()
