"""Takes what podlink's sidecars export over OTLP/gRPC, counts the spans and forgets them.

    python -m bench.sink 127.0.0.1:4317

It runs on the CPU of the load, so its cost is not counted as a proxy's. On SIGTERM it prints how
many spans it was given; a run that exported none did not measure what it claims.
"""

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_TOTAL = "spans: "
_MAX_MESSAGE = 64 * 1024 * 1024


class Sink:
    """Answers Export with an empty response, which means that all was accepted."""

    def __init__(self) -> None:
        self.spans = 0

    def export(
        self, request: ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self.spans += sum(
            len(scope.spans)
            for resource in request.resource_spans
            for scope in resource.scope_spans
        )
        return ExportTraceServiceResponse()

    def serve(self, address: str) -> grpc.Server:
        """Start to serve at `host:port`; one thread, so `spans` needs no lock."""
        server = grpc.server(
            ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", _MAX_MESSAGE)]
        )
        export = grpc.unary_unary_rpc_method_handler(
            self.export,
            request_deserializer=ExportTraceServiceRequest.FromString,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(_SERVICE, {"Export": export})
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(address)
        server.start()
        return server


def exported_spans(log: Path) -> int:
    """What a sink that has ended says it was given; 0 if it did not end well."""
    last = log.read_text().splitlines()[-1:]
    return int(last[0].removeprefix(_TOTAL)) if last and last[0].startswith(_TOTAL) else 0


def main() -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    sink = Sink()
    server = sink.serve(sys.argv[1])
    ended.wait()
    server.stop(1).wait()
    print(f"{_TOTAL}{sink.spans}", flush=True)


if __name__ == "__main__":
    main()
