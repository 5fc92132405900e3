"""OTLP over HTTP: POST /v1/traces, protobuf or JSON. (OTLP specification, "OTLP/HTTP".)

JSON is protobuf's own mapping with one exception: ids are hex, not base64.
"""

import asyncio
import base64
import binascii
import json
from typing import Any

from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from certs.trust.bans import Banned
from certs.trust.svid import SvidRefused
from traces.calls import NOBODY, Calls, TooManyCalls
from traces.config import TracesConfig
from traces.receive_grpc import Refusals, answer
from traces.secured import Secured
from traces.writer import StoreBusy, StoreFailed, Writer

_PROTOBUF, _JSON = "application/x-protobuf", "application/json"
_WRITER = web.AppKey("writer", Writer)
_SECURED = web.AppKey[Secured | None]("secured")
_CALLS = web.AppKey("calls", Calls)
_REFUSALS = web.AppKey("refusals", Refusals)
_IDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_MAX_DEPTH = 64


class RequestMalformed(ValueError):
    """Not an OTLP trace request. The message says what is wrong and repeats nothing of it."""

    reason = "request_malformed"


def receiver_app(
    config: TracesConfig, writer: Writer, secured: Secured | None = None, calls: Calls | None = None
) -> web.Application:
    app = web.Application(client_max_size=config.max_request_bytes)
    app[_WRITER], app[_SECURED], app[_REFUSALS] = writer, secured, Refusals()
    app[_CALLS] = calls or Calls()
    app.router.add_post("/v1/traces", _export)
    return app


async def _export(http: web.Request) -> web.Response:
    secured, caller = http.app[_SECURED], NOBODY
    if secured is not None:
        try:
            caller = secured.of_request(http)
        except (SvidRefused, Banned) as e:
            http.app[_REFUSALS].log("sender refused", str(e), {"unauthenticated": 1})
            return _refusal(http, 401, "show the leaf of a workload")
    try:
        with http.app[_CALLS].one(caller):
            return await _take(http, caller.identity)
    except TooManyCalls:
        http.app[_REFUSALS].log("sender refused", caller.identity, {"too_many_calls": 1})
        return _refusal(http, 429, "too many calls at once", {"Retry-After": "1"})


async def _take(http: web.Request, sender: str) -> web.Response:
    kind = http.content_type
    if kind not in (_PROTOBUF, _JSON):
        return _refusal(http, 415, f"content type must be {_PROTOBUF} or {_JSON}")
    try:
        async with asyncio.timeout(http.app[_CALLS].read_s):
            body = (
                await http.read()
            )  # raises 413 past client_max_size, also for what gzip unpacks to
    except TimeoutError:
        return _refusal(http, 408, "the request did not come", {"Connection": "close"})
    if not http.app[_WRITER].has_room(sender, len(body)):
        return _refusal(http, 429, "the store is behind", {"Retry-After": "1"})
    try:
        if kind == _JSON:  # slow to parse: the loop has other senders to hear
            request = await asyncio.to_thread(parse_json, body)
        else:
            request = parse_protobuf(body)
    except RequestMalformed as e:
        return _refusal(http, 400, str(e))
    try:
        rejected = await http.app[_WRITER].write(request, sender)
    except StoreBusy:
        return _refusal(http, 429, "the store is behind", {"Retry-After": "1"})
    except StoreFailed:
        return _refusal(http, 503, "the store cannot write", {"Retry-After": "5"})
    if rejected:
        http.app[_REFUSALS].log("spans refused", sender, rejected)
    return _answer(kind, answer(rejected))


def parse_protobuf(body: bytes) -> ExportTraceServiceRequest:
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as e:
        raise RequestMalformed("not an ExportTraceServiceRequest") from e


def parse_json(body: bytes) -> ExportTraceServiceRequest:
    try:
        raw = _with_base64_ids(json.loads(body), _MAX_DEPTH)
        if not isinstance(raw, dict):
            raise RequestMalformed("not a JSON object")
        request = ExportTraceServiceRequest()
        json_format.ParseDict(raw, request, ignore_unknown_fields=True)
    except (ValueError, TypeError, ArithmeticError, RecursionError, json_format.ParseError) as e:
        raise RequestMalformed("not an ExportTraceServiceRequest in JSON") from e
    return request


def _with_base64_ids(raw: Any, depth: int) -> Any:
    """OTLP's hex ids in the form that protobuf's JSON mapping expects."""
    if depth == 0:
        raise RequestMalformed("nested too deeply")
    if isinstance(raw, list):
        return [_with_base64_ids(item, depth - 1) for item in raw]
    if not isinstance(raw, dict):
        return raw
    return {
        key: _base64_of_hex(value)
        if key in _IDS and isinstance(value, str)
        else _with_base64_ids(value, depth - 1)
        for key, value in raw.items()
    }


def _base64_of_hex(digits: str) -> str:
    try:
        return base64.b64encode(binascii.unhexlify(digits)).decode()
    except ValueError as e:
        raise RequestMalformed("an id is not hex") from e


def _answer(kind: str, message: Message) -> web.Response:
    if kind == _JSON:
        return web.json_response(json_format.MessageToDict(message))
    return web.Response(body=message.SerializeToString(), content_type=_PROTOBUF)


def _refusal(
    http: web.Request, status: int, text: str, headers: dict[str, str] | None = None
) -> web.Response:
    """A google.rpc.Status, as the specification asks; its field 2 is the message."""
    if http.content_type != _PROTOBUF:
        return web.json_response({"message": text}, status=status, headers=headers)
    encoded = text.encode()
    return web.Response(
        body=b"\x12" + bytes((len(encoded),)) + encoded,  # every text above is below 128 bytes
        status=status,
        headers=headers,
        content_type=_PROTOBUF,
    )
