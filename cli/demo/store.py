"""A store for machines without Redis: INCR and SET of the Redis protocol, in memory."""

import socketserver
import threading

_values: dict[bytes, bytes] = {}
_lock = threading.Lock()


class Store(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            self.wfile.write(_do(words))


def _do(words: list[bytes]) -> bytes:
    with _lock:
        if words[0].upper() == b"INCR":
            number = int(_values.get(words[1], b"0")) + 1
            _values[words[1]] = b"%d" % number
            return b":%d\r\n" % number
        if words[0].upper() == b"SET":
            _values[words[1]] = words[2]
            return b"+OK\r\n"
    return b"-ERR this store knows INCR and SET\r\n"


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("", 6379), Store).serve_forever()
