"""The shop's API pod. Counts orders in a Redis, in plain RESP. Knows nothing of podlink."""

import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STORE = ("store.shop", 6379)


def count(order: str) -> int:
    """One INCR and one SET at the store; returns the number of orders."""
    with socket.create_connection(STORE, timeout=5) as store, store.makefile("rb") as answers:
        store.sendall(b"*2\r\n$4\r\nINCR\r\n$6\r\norders\r\n")
        number = int(answers.readline()[1:])
        key, value = f"order:{number}".encode(), order.encode()
        store.sendall(
            b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)
        )
        answers.readline()
    return number


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        order = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        body = f"order {count(order)}: {order}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        sys.stdout.write(f"{format % args}\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Api).serve_forever()
