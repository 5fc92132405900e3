"""`python -m sidecar.wait`: ends once the proxy of this container is ready.

The postStart hook of a proxy that is an ordinary container: the containers after it start when the
hook has ended. After two minutes it fails, and the kubelet starts the proxy anew.
"""

import sys
import time
from http.client import HTTPConnection, HTTPException

from kit.clock import monotonic
from kit.contract import HEALTH_PORT

_PATIENCE_S = 120.0
_POLL_S = 0.1


def main() -> None:
    deadline = monotonic() + _PATIENCE_S
    while not _started():
        if monotonic() > deadline:
            sys.exit("the proxy is not ready; its log says what it waits for")
        time.sleep(_POLL_S)


def _started() -> bool:
    connection = HTTPConnection("127.0.0.1", HEALTH_PORT, timeout=1)
    try:
        connection.request("GET", "/startup")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
