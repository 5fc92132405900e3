"""`make fuzz-native`: parsers of hostile bytes under Atheris (libFuzzer), guided by the code they reach.

    make fuzz-native ARGS=--seconds=300

Each target has a part of the time and a process of its own. What crashes one is left in .fuzz/ as a
file, and belongs into the parser's test. Without Atheris for this Python it says so and does nothing:
`make fuzz` draws for the same parsers by Hypothesis.
"""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().parents[1] / ".fuzz"
Target = Callable[[bytes], None]


class _Sink:
    """Copies what a FrameReader hands over, so that two ways of cutting can be compared."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []

    def data(self, piece: memoryview) -> None:
        if self.seen and self.seen[-1][0] == -1:
            self.seen[-1] = (-1, self.seen[-1][1] + bytes(piece))
        else:
            self.seen.append((-1, bytes(piece)))

    def control(self, kind: int, payload: bytes) -> None:
        self.seen.append((kind, bytes(payload)))


def frames() -> Target:
    from sidecar.errors import ProtocolViolation
    from sidecar.wire.frames import FrameReader

    def read(data: bytes, step: int) -> tuple[list[tuple[int, bytes]], bool]:
        reader, sink = FrameReader(), _Sink()
        try:
            for at in range(0, len(data), step):
                reader.feed(memoryview(data[at : at + step]), sink)
        except ProtocolViolation:
            return sink.seen, True
        return sink.seen, False

    def one(data: bytes) -> None:
        whole = read(data, max(1, len(data)))
        for step in (1, 7):
            assert read(data, step) == whole, "how it was cut changes what was read"

    return one


def opening() -> Target:
    from sidecar.errors import ProtocolViolation
    from sidecar.wire.opening import Opening, decode_accept, decode_code

    def one(data: bytes) -> None:
        for decode in (decode_accept, decode_code):
            with contextlib.suppress(ProtocolViolation):
                decode(data)
        with contextlib.suppress(ProtocolViolation):
            read = Opening.decode(data)
            assert Opening.decode(read.encode()) == read

    return one


def client_hello() -> Target:
    from sidecar.wire.client_hello import FirstBytes, classify

    def one(data: bytes) -> None:
        last = classify(data, [b"podlink/1"])
        if last is FirstBytes.INCOMPLETE:
            return
        decided = [classify(data[:end], [b"podlink/1"]) for end in range(1, min(len(data), 64))]
        settled = [found for found in decided if found is not FirstBytes.INCOMPLETE]
        assert set(settled) <= {last}, "more bytes change a verdict that had fallen"

    return one


def http() -> Target:
    from sidecar.report import LinkRecord
    from sidecar.telemetry.requests import RequestWatcher

    def told(asked: bytes, answered: bytes, step: int) -> list[tuple[str, str, int]]:
        found: list[Any] = []
        watcher = RequestWatcher(LinkRecord("inbound"), found.append, lambda: 1)
        for show, data in ((watcher.request, asked), (watcher.answer, answered)):
            for at in range(0, len(data), step):
                show(memoryview(data[at : at + step]))
        watcher.end()
        return [(each.method, each.path, each.status) for each in found]

    def one(data: bytes) -> None:
        half = len(data) // 2
        told(data[:half], data[half:], max(1, len(data)))
        told(data[:half], data[half:], 3)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        told(preface + data[:half], data[half:], 5)

    return one


def original_dst() -> Target:
    from sidecar.wire.original_dst import parse_sockaddr

    def one(data: bytes) -> None:
        with contextlib.suppress(ValueError, OSError):
            parse_sockaddr(data)

    return one


def annotations() -> Target:
    from injector.annotations import AnnotationRefused, read_settings

    names = (
        "skip-inbound-ports", "skip-outbound-ports", "skip-subnets", "upstreams", "mode",
        "plaintext", "external", "http-ports", "proxy-cpu-limit", "proxy-memory-limit", "workers",
        "shutdown-grace-period",
        "source-address",
    )  # fmt: skip

    def one(data: bytes) -> None:
        if data:
            key = f"config.podlink.dev/{names[data[0] % len(names)]}"
            with contextlib.suppress(AnnotationRefused):
                read_settings({key: data[1:].decode("utf-8", "replace")}, {})

    return one


TARGETS: dict[str, Callable[[], Target]] = {
    made.__name__: made for made in (frames, opening, client_hello, http, original_dst, annotations)
}


def run(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["sidecar", "injector"]):
        target = TARGETS[name]()
    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={KEPT}/{name}-"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


def main() -> int:
    asked = argparse.ArgumentParser(prog="make fuzz-native")
    asked.add_argument("--seconds", type=int, default=600, help="how long in all")
    asked.add_argument("--target", choices=TARGETS)
    known = asked.parse_args()
    if known.target:
        run(known.target, known.seconds)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("Atheris has no build for this Python; `make fuzz` draws for the same parsers")
        return 0
    each = max(1, known.seconds // len(TARGETS))
    for name in TARGETS:
        words = [sys.executable, "-m", "scripts.fuzz_native", "--target", name]
        done = subprocess.run([*words, "--seconds", str(each)], capture_output=True, text=True)
        wanted = ("stat::number_of_executed_units", "cov:")
        told = [
            line for line in done.stderr.splitlines() if line.startswith("stat::number_of_exec")
        ]
        covered = [line for line in done.stderr.splitlines() if wanted[1] in line][-1:]
        print(f"{name}: {' '.join(told + covered)}", flush=True)
        if done.returncode:
            print(done.stderr[-8000:])
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
