"""`python -m sidecar.capture.validate`: the init container `podlink-validate`, without any privilege.

Where the node's CNI plugin sets up capture, a pod may start before the plugin was installed, and would
then run in plaintext without anybody noticing. This proves capture as `podlink-capture` does, and
fails the pod if there is none. Restarting its containers does not help then, only a new pod does.
"""

import logging
import sys

from kit.logs import start_logging
from sidecar.capture.canary import NotCaptured, has_route, prove_captured

_log = logging.getLogger("podlink.capture")


def main() -> None:
    start_logging()
    proven = []
    try:
        for version in (4, 6):
            if has_route(version):
                prove_captured(version)
                proven.append(f"IPv{version} captured")
    except NotCaptured as e:
        _log.error(
            "this pod is not captured: delete it once podlink-cni runs on its node",
            extra={"error": str(e)},
        )
        sys.exit(1)
    if not proven:
        _log.error("this pod has no route at all, so nothing can be proven")
        sys.exit(1)
    _log.info("capture in place", extra={"proven": ", ".join(proven)})


if __name__ == "__main__":
    main()
