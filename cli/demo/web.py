"""The shop's web pod. Knows nothing of podlink: it calls the API by its Service name, in plain HTTP."""

import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

API = "http://api.shop"


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        order = self.path.removeprefix("/order/")
        request = urllib.request.Request(f"{API}/order", data=order.encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        sys.stdout.write(f"{format % args}\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8080), Web).serve_forever()
