"""The CA comes back after an outage and everybody renews at once: its work stays bounded, and all have
a new leaf before the old one ends."""

import asyncio
from pathlib import Path

import grpc
import pytest

from certs.client.ca import make_request, retry_hint_s
from certs.client.renewal import longest_pause_s, pause_s
from kit.backoff import Backoff
from kit.clock import monotonic
from proto import ca_pb2
from tests.certs.fake_kube import FakeKube
from tests.certs.running_ca import running_ca

CROWD = 500
LIFETIME_S = 60.0
"""Of their leaves, half of which has gone by when the CA returns."""


@pytest.mark.fault_row("renewal-stampede")
@pytest.mark.timeout(60)
async def test_five_hundred_pods_renew_at_once_and_none_too_late(tmp_path: Path) -> None:
    fake = FakeKube()
    tokens = [fake.add_pod(name=f"pod-{n}", account=f"account-{n % 20}") for n in range(CROWD)]
    request = ca_pb2.SignRequest(csr_der=make_request()[1])
    async with running_ca(tmp_path, fake) as ca:
        began, done_at, shed = monotonic(), list[float](), 0

        async def renew(token: str) -> None:
            """As CaClient does: back off, and heed the CA's hint."""
            nonlocal shed
            backoff = Backoff(first_s=0.5, longest_s=longest_pause_s(LIFETIME_S))
            while True:
                try:
                    metadata = (("authorization", f"Bearer {token}"),)
                    async with ca.stub() as stub:  # a connection of its own, as every pod has
                        await stub.Sign(request, metadata=metadata, timeout=15)
                except grpc.aio.AioRpcError as e:
                    assert e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    hint_s = retry_hint_s(e)
                    assert hint_s is not None and hint_s > 0
                    shed += 1
                    await asyncio.sleep(max(pause_s(backoff.next_s()), hint_s))
                else:
                    done_at.append(monotonic() - began)
                    return

        await asyncio.gather(*map(renew, tokens))
        limits = ca.server.limits
        assert len(done_at) == CROWD
        assert max(done_at) < LIFETIME_S / 2, "before any leaf ends"
        assert limits.in_flight.peak <= 64
        assert shed > 0, "the crowd was larger than the limits"
        assert len({i.serial for i in ca.issued}) == len(ca.issued) == CROWD
        print(
            f"{CROWD} renewals in {max(done_at):.1f} s, at most {limits.in_flight.peak} at once, "
            f"{shed} times shed"
        )
