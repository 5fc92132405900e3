"""`python -m sidecar.admin /links`: ask the proxy in this container and print what it says.

Runs inside `podlink-proxy`, by `kubectl exec` or the CLI. Imports nothing heavy: it starts in a pod
whose memory is counted. A stream asked for with `?until=eof` ends with stdin: a container runtime kills
no command whose caller has gone, it closes its input.
"""

import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from typing import Final

from kit.contract import ADMIN_SOCKET
from kit.settings import Settings

_CHUNK: Final = 65536
_TIMEOUT_S: Final = 10.0
_STREAMS: Final = ("/tap",)
_STDIN: Final = 0


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2 or argv[1] in ("-h", "--help"):
        print("usage: python -m sidecar.admin /PATH   (/ lists the paths)", file=sys.stderr)  # noqa: T201
        return 2
    path = argv[1] if argv[1].startswith("/") else f"/{argv[1]}"
    where = str(Settings().path("PODLINK_ADMIN_SOCKET", ADMIN_SOCKET))
    try:
        return _ask(where, path)
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as e:
        print(f"the proxy does not answer at {where}: {e.strerror or e}", file=sys.stderr)  # noqa: T201
        return 1


def _ask(where: str, path: str) -> int:
    page, _, query = path.partition("?")
    streams = page in _STREAMS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(where)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n".encode())
        head, rest = _head(sock)
        status = int(head.split(b" ", 2)[1])
        if streams and status == 200:
            sock.settimeout(None)
            _copy(sock, rest, until_eof=query == "until=eof")
            return 0
        body = rest + b"".join(iter(lambda: sock.recv(_CHUNK), b""))
    if status != 200:
        said = body.decode("utf-8", "replace").strip()
        print(f"{path}: {said or status}", file=sys.stderr)  # noqa: T201
        return 1
    if sys.stdout.isatty():
        body = json.dumps(json.loads(body), indent=2).encode() + b"\n"
    sys.stdout.buffer.write(body)
    return 0


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    got = b""
    while b"\r\n\r\n" not in got:
        piece = sock.recv(_CHUNK)
        if not piece:
            raise OSError("the connection ended early; are you the proxy's own user?")
        got += piece
    head, _, rest = got.partition(b"\r\n\r\n")
    return head, rest


def _copy(sock: socket.socket, rest: bytes, *, until_eof: bool) -> None:
    out = sys.stdout.buffer
    heard: list[socket.socket | int] = [sock, _STDIN] if until_eof else [sock]
    while True:
        out.write(rest)
        out.flush()
        ready, _, _ = select.select(heard, (), ())
        if _STDIN in ready and not os.read(_STDIN, _CHUNK):
            return
        if sock not in ready:
            rest = b""
            continue
        rest = sock.recv(_CHUNK)
        if not rest:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv))
