"""The app behind the far proxy: a small answer to any request, or a bulk stream when asked.

    python -m bench.app 127.0.0.1:9000

`GET /` is answered with RESPONSE, `GET /bulk/<n>` with n bytes. It is a bare epoll loop, because
whatever this process costs slows the load and blurs the differences between the proxies.
It speaks just enough HTTP/1.1 for `bench.load`: no bodies in requests, no pipelining.
"""

import select
import socket
import sys

_BODY = b"podlink bench: a small answer, of the size that an API call might give back.\n"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: podlink-bench\r\n"
    b"Cache-Control: no-store\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
_BLOCK = memoryview(bytes(range(256)) * 1024)  # 256 KiB
_MAX_REQUEST = 8192


def bulk_head(size_bytes: int) -> bytes:
    """What comes before the body of a bulk answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes


class App:
    """One listening socket and its connections, all on one epoll."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._epoll = select.epoll()
        self._connections: dict[int, socket.socket] = {}
        self._partial: dict[int, bytes] = {}
        self._owed: dict[int, int] = {}
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve until the process is ended."""
        listening = self._listener.fileno()
        while True:
            for fd, event in self._epoll.poll():
                if fd == listening:
                    self._accept()
                elif event & select.EPOLLOUT:
                    self._stream(fd)
                else:
                    self._read(fd)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[connection.fileno()] = connection
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            fresh = connection.recv(_MAX_REQUEST)
        except OSError:
            return self._close(fd)
        data = self._partial.pop(fd, b"") + fresh
        if not fresh or len(data) > _MAX_REQUEST:
            return self._close(fd)
        if not data.endswith(b"\r\n\r\n"):
            self._partial[fd] = data
            return None
        if data.startswith(b"GET /bulk/"):
            return self._start_stream(fd, int(data[10:].split(b" ", 1)[0]))
        try:
            connection.send(RESPONSE)
        except OSError:
            self._close(fd)
        return None

    def _start_stream(self, fd: int, size_bytes: int) -> None:
        self._owed[fd] = size_bytes
        self._connections[fd].send(bulk_head(size_bytes))
        self._epoll.modify(fd, select.EPOLLOUT)

    def _stream(self, fd: int) -> None:
        connection, owed = self._connections[fd], self._owed[fd]
        try:
            while owed:
                owed -= connection.send(_BLOCK[:owed])
        except BlockingIOError:
            self._owed[fd] = owed
        except OSError:
            self._close(fd)
        else:
            del self._owed[fd]
            self._epoll.modify(fd, select.EPOLLIN)

    def _close(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._connections.pop(fd).close()
        self._partial.pop(fd, None)
        self._owed.pop(fd, None)


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    with socket.create_server((host, int(port)), backlog=4096) as listener:
        App(listener).run()


if __name__ == "__main__":
    main()
