"""What the CA costs: `python -m bench.ca`. CPU per signature, and memory per pod that it knows.

The CA runs in a process of its own together with the API server that the tests put in its place, whose
two answers per signature are in the figures of the whole: they are an upper bound. `issue` alone is
template, signature, reading back and judging.
"""

import asyncio
import datetime as dt
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority.issue import Order
from certs.authority.keys import create_root, load_authority
from certs.client.ca import make_request
from certs.server.limits import InFlight, Limits, TokenBuckets
from certs.trust.identity import WorkloadIdentity
from kit.clock import monotonic, utcnow
from proto import ca_pb2
from proto.ca_pb2_grpc import CertificateAuthorityStub

PODS = 2000
STREAMS = 1000
AT_ONCE = 32
PER_CHANNEL = 12
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
CA_NAME = "podlink-ca.podlink-system.svc"


def issue_us() -> float:
    """CPU of one leaf, microseconds."""
    now = utcnow()
    authority = load_authority(create_root("cluster.local", now), "cluster.local", 1, now)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    identity = WorkloadIdentity("cluster.local", "shop", "api")
    order = Order(identity, frozenset({"10.0.0.7"}), (), dt.timedelta(hours=1), "uid")
    for _ in range(100):
        authority.issue(order, key, utcnow())
    began, count = time.process_time(), 2000
    for _ in range(count):
        authority.issue(order, key, utcnow())
    return (time.process_time() - began) / count * 1e6


async def serve() -> None:
    """The child: a CA without rate limits, which are not what is measured."""
    from tests.certs.fake_kube import FakeKube
    from tests.certs.running_ca import running_ca

    fake = FakeKube()
    tokens = [fake.add_pod(name=f"pod-{n}", account=f"account-{n % 50}") for n in range(PODS)]
    limits = Limits.usual(monotonic)
    limits.unread, limits.connections_per_source = InFlight(10**6, 10**6), 10**6
    limits.in_flight = limits.identities_in_flight = InFlight(10**6, 10**6)
    for name in ("per_source", "in_all", "per_identity", "per_pod"):
        setattr(limits, name, TokenBuckets(1e6, 10**6, monotonic))
    async with running_ca(Path(tempfile.mkdtemp()), fake, limits=limits, tick_s=1.0) as ca:
        fake.seen.clear()
        bundle = ca.authority.bundle.to_pem().decode()
        print(json.dumps({"port": ca.server.port, "tokens": tokens, "bundle": bundle}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def measure() -> dict[str, float]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.ca", "serve"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert child.stdout is not None and child.stdin is not None
    try:
        told = json.loads(await child.stdout.readline())
        return await _load(child.pid, told["port"], told["tokens"], told["bundle"])
    finally:
        child.stdin.close()
        await child.wait()


async def _load(pid: int, port: int, tokens: list[str], bundle: str) -> dict[str, float]:
    credentials = grpc.ssl_channel_credentials(bundle.encode())
    options = [("grpc.ssl_target_name_override", CA_NAME), ("grpc.use_local_subchannel_pool", 1)]

    def dial() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)

    request = ca_pb2.SignRequest(csr_der=make_request()[1])
    channels = [dial() for _ in range(AT_ONCE // 8)]
    idle_mib = _rss(pid) / 2**20
    waiting = list(tokens)

    async def work(channel: grpc.aio.Channel) -> None:
        stub = CertificateAuthorityStub(channel)
        while waiting:
            metadata = (("authorization", f"Bearer {waiting.pop()}"),)
            await stub.Sign(request, metadata=metadata, timeout=30)

    cpu, began = _cpu(pid), monotonic()
    await asyncio.gather(*(work(channels[n % len(channels)]) for n in range(AT_ONCE)))
    sign_us, per_s = (_cpu(pid) - cpu) / PODS * 1e6, PODS / (monotonic() - began)
    signed_mib = _rss(pid) / 2**20
    streams, calls = [], []
    for at in range(0, STREAMS, PER_CHANNEL):
        channel = dial()
        streams.append(channel)
        for token in tokens[at : min(at + PER_CHANNEL, STREAMS)]:
            metadata = (("authorization", f"Bearer {token}"),)
            calls.append(CertificateAuthorityStub(channel).WatchBundle(metadata=metadata))
            await calls[-1].read()
    watched_mib = _rss(pid) / 2**20
    for call in calls:
        call.cancel()
    for channel in (*channels, *streams):
        await channel.close()
    return {
        "issue, us CPU": issue_us(),
        "sign over gRPC with both questions, us CPU": sign_us,
        "signatures/s": per_s,
        "resident with nobody, MiB": idle_mib,
        f"resident after {PODS} leaves, MiB": signed_mib,
        "per WatchBundle stream, KiB": (watched_mib - signed_mib) * 1024 / STREAMS,
    }


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        import uvloop

        uvloop.run(serve())
        return
    for name, figure in asyncio.run(measure()).items():
        print(f"{name:48} {figure:10.1f}")


if __name__ == "__main__":
    main()
