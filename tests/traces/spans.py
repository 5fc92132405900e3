"""OTLP requests as a sidecar would send them, and one place to send them from."""

import urllib.error
import urllib.request

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from sidecar.report import LinkRecord
from sidecar.telemetry.encode import SpanEncoder, export_request, framed
from sidecar.telemetry.resource import PodResource
from tests.patience import PATIENCE_S
from tests.traces.process import StoreProcess

RESOURCE = PodResource(pod="api-1", namespace="shop", node="node-1", service_account="api").encode()
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def payload_of(*records: LinkRecord) -> bytes:
    encoder = SpanEncoder()
    return export_request(RESOURCE, [framed(encoder.encode(record)) for record in records])


def request_of(*records: LinkRecord) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(payload_of(*records))


def send(store: StoreProcess, payload: bytes) -> ExportTraceServiceResponse:
    with grpc.insecure_channel(f"127.0.0.1:{store.grpc_port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(EXPORT)
        return ExportTraceServiceResponse.FromString(call(payload, timeout=PATIENCE_S))


def post(store: StoreProcess, body: bytes, kind: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{store.http_port}/v1/traces",
        data=body,
        headers={"Content-Type": kind, **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read()
