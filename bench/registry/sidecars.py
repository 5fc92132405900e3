"""Many sidecars' streams in one process: `python -m bench.registry.sidecars`.

Each has a TCP connection, a TLS session and a stream of its own. All but `--whole` of them only
acknowledge what comes and note when: 500 sidecars' work of reading it, which 500 pods would share,
must not count as the registry's. The `--whole` ones are the sidecar's own client. Prints "ready" once
all have been told what they asked for, then notes until SIGTERM and writes the notes to `--out`:
`[when in ns, HOT's addresses]` of each answer about HOT, by sidecar.
"""

import argparse
import asyncio
import json
import signal
from pathlib import Path
from time import monotonic_ns
from typing import Any

import grpc
import uvloop

from bench.registry import cluster
from bench.registry.source import TRUST_DOMAIN, FileSource
from kit.tasks import spawn
from proto import registry_pb2 as pb
from sidecar.directory import Found, Own, Service
from sidecar.discovery.client import RegistryClient

HOT = f"{cluster.HOT}.{cluster.HOT_NAMESPACE}"
Note = tuple[int, int]
"""When (ns), and the number of the set of addresses that was told."""
_ACK_EVERY = 4


class Notes:
    """What all streams of this process were told; equal sets of addresses are kept once."""

    def __init__(self) -> None:
        self.by_sidecar: dict[int, list[Note]] = {}
        self._sets: dict[tuple[str, ...], int] = {}
        self._of_raw: dict[bytes, int] = {}
        self.told_of_hot: set[int] = set()

    def note(self, sidecar: int, when_ns: int, number: int) -> None:
        self.by_sidecar.setdefault(sidecar, []).append((when_ns, number))
        self.told_of_hot.add(sidecar)

    def number_of(self, ips: tuple[str, ...]) -> int:
        return self._sets.setdefault(ips, len(self._sets))

    def of_raw(self, raw: bytes) -> int | None:
        """Of a message with its version cut off; read only if nobody was sent the same before."""
        if raw not in self._of_raw:
            response = pb.DiscoverResponse.FromString(raw)
            hot = [entry.service for entry in response.entries if entry.key == HOT]
            ips = tuple(sorted(endpoint.ip for endpoint in hot[0].endpoints)) if hot else None
            self._of_raw[raw] = -1 if ips is None else self.number_of(ips)
        number = self._of_raw[raw]
        return None if number < 0 else number

    def as_json(self) -> dict[str, object]:
        return {"sets": list(self._sets), "by_sidecar": self.by_sidecar}


class Whole(RegistryClient):
    """The sidecar's own client, with notes."""

    notes: Notes
    number: int

    def _keep(self, key: str, value: Found) -> None:
        super()._keep(key, value)
        if key == HOT and isinstance(value, Service):
            ips = tuple(sorted(endpoint.ip for endpoint in value.endpoints))
            self.notes.note(self.number, monotonic_ns(), self.notes.number_of(ips))


def keys_of(number: int, services: int) -> list[str]:
    """HOT, and what else the app of this sidecar talks to."""
    others = {number * 7 % max(1, services - 1) + 1 for number in range(number, number + 4)}
    where = cluster.PER_NAMESPACE // cluster.PER_SERVICE
    return [HOT, *(f"svc-{one}.team-{(one - 1) // where}" for one in sorted(others))]


async def light(channel: grpc.aio.Channel, number: int, keys: list[str], notes: Notes) -> None:
    path = "/podlink.registry.v1.Registry/Discover"
    open_stream: Any = channel.stream_stream(path, pb.DiscoverRequest.SerializeToString, None)
    call = open_stream()
    await call.write(pb.DiscoverRequest(hello=_hello(number)))
    await call.write(pb.DiscoverRequest(subscribe=pb.Subscribe(keys=keys)))
    seen = 0
    while True:
        raw = await call.read()
        when_ns = monotonic_ns()
        if not isinstance(raw, bytes):
            raise RuntimeError(f"stream {number} ended: {await call.code()}")
        version, rest = _version(raw)
        if (told := notes.of_raw(rest)) is not None:
            notes.note(number, when_ns, told)
        seen += 1
        if seen % _ACK_EVERY == 0:
            await call.write(pb.DiscoverRequest(ack=pb.Ack(version=version)))


def _version(raw: bytes) -> tuple[int, bytes]:
    number = shift = 0
    at = 1
    while True:
        byte = raw[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, raw[at:]


def _hello(number: int) -> pb.Hello:
    name = f"sidecar-{number}"
    where = cluster.HOT_NAMESPACE
    return pb.Hello(pod_uid=f"{where}-{name}", namespace=where, pod_name=name, version="bench")


async def run(args: argparse.Namespace) -> None:
    source, notes = FileSource(args.certs, "near"), Notes()
    assert source.current is not None
    of = source.current.material
    credentials = grpc.ssl_channel_credentials(of.bundle_pem, of.key_pem, of.chain_pem)
    # A connection for each, as from as many pods: gRPC would share one.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    tasks, channels = [], []
    for number in range(args.first, args.first + args.count):
        channel = grpc.aio.secure_channel(f"127.0.0.1:{args.port}", credentials, options=options)
        channels.append(channel)
        keys = keys_of(number, args.services)
        if number - args.first < args.whole:
            name = f"sidecar-{number}"
            uid = f"{cluster.HOT_NAMESPACE}-{name}"
            own = Own(cluster.HOT_NAMESPACE, name, uid, frozenset({"127.0.0.1"}))
            client = Whole(own, TRUST_DOMAIN, lambda c=channel: c, lambda _: None)  # type: ignore[misc]
            client.notes, client.number = notes, number
            tasks.append(spawn(client.run(), name=name))
            for key in keys:
                client.ask(key, lambda _: None)
        else:
            tasks.append(spawn(light(channel, number, keys, notes), name=f"sidecar-{number}"))
    while len(notes.told_of_hot) < args.count:
        await asyncio.sleep(0.1)
        for task in tasks:
            if task.done():
                task.result()
    print("ready", flush=True)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    Path(args.out).write_text(json.dumps(notes.as_json()))
    for task in tasks:
        task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("port", "first", "count", "whole", "services"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--certs", type=Path, required=True)
    parser.add_argument("--out", required=True)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
