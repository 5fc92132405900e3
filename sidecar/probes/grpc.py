"""One gRPC health probe, as a kubelet makes it (kubernetes/pkg/probe/grpc, its behaviour).

`grpc.health.v1.Health/Check` without TLS. The two messages have one field each, so they are written
and read here instead of by generated code of a further package.
"""

from typing import Final

import grpc.aio

from sidecar.probes.http import ProbeFailed, connect
from sidecar.probes.relay import relay
from sidecar.probes.spec import GrpcProbe
from sidecar.source_address import Source

_CHECK: Final = "/grpc.health.v1.Health/Check"
_STATES: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # each probe is a connection of its own
    ("grpc.primary_user_agent", "kube-probe/podlink"),
    ("grpc.max_receive_message_length", 1024),
)


async def ask_grpc(probe: GrpcProbe, ip: str, mark: int = 0, source: Source | None = None) -> None:
    """Ask once, within the probe's time limit; the app sees `source` if that can be.

    Raises ProbeFailed.
    """
    authority = f"[{ip}]:{probe.port}" if ":" in ip else f"{ip}:{probe.port}"
    options = (*_OPTIONS, ("grpc.default_authority", authority))
    async with (
        relay(lambda: connect(ip, probe.port, mark, source=source)) as target,
        grpc.aio.insecure_channel(target, options=options) as channel,
    ):
        check = channel.unary_unary(
            _CHECK, request_serializer=_request, response_deserializer=_state
        )
        try:
            state = await check(probe.service, timeout=probe.timeout_s)
        except grpc.aio.AioRpcError as e:
            raise ProbeFailed(f"{e.code().name}: {e.details()}") from e
    if state != 1:
        raise ProbeFailed(f"the service is {_STATES.get(state, state)}")


def _request(service: str) -> bytes:
    """HealthCheckRequest: field 1, a string."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _state(message: bytes) -> int:
    """HealthCheckResponse: field 1, an enum; absent is UNKNOWN."""
    return message[1] if len(message) >= 2 and message[0] == 0x08 else 0
