"""The sink that podlink's sidecars export to, over real gRPC."""

import os
import sys
import threading
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from bench.processes import Child
from bench.proxies import free_address, text
from bench.sink import exported_spans
from tests.patience import PATIENCE_S


def export(address: str, spans: int) -> None:
    scope = ScopeSpans(spans=[Span(name="link")] * spans)
    request = ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[scope])])
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=ExportTraceServiceRequest.SerializeToString,
            response_deserializer=ExportTraceServiceResponse.FromString,
        )
        call(request, timeout=PATIENCE_S, wait_for_ready=True)


def test_every_span_of_every_export_is_counted(tmp_path: Path) -> None:
    address, log = text(free_address()), tmp_path / "sink.log"
    command = [sys.executable, "-m", "bench.sink", address]
    sink = Child("the sink", command, cpus=os.sched_getaffinity(0), log=log)
    try:
        exporters = [threading.Thread(target=export, args=(address, n)) for n in (1, 2, 300)]
        for exporter in exporters:
            exporter.start()
        for exporter in exporters:
            exporter.join()
    finally:
        sink.stop()
    assert exported_spans(log) == 303


@pytest.mark.parametrize("said", ["", "Traceback\n  File\nOSError: spans: 3 lost\n"])
def test_a_sink_that_failed_counts_for_nothing(tmp_path: Path, said: str) -> None:
    (tmp_path / "sink.log").write_text(said)
    assert exported_spans(tmp_path / "sink.log") == 0
