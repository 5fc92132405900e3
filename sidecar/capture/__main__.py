"""`python -m sidecar.capture`: the init container `podlink-capture`."""

import logging
import sys

from kit.logs import start_logging
from kit.settings import Settings
from sidecar.capture.apply import CaptureFailed, apply
from sidecar.capture.config import plan_from

_log = logging.getLogger("podlink.capture")


def main() -> None:
    start_logging()
    plan = plan_from(Settings())
    try:
        proven = apply(plan)
    except CaptureFailed as e:
        _log.error("capture failed", extra={"error": str(e)})
        sys.exit(1)
    _log.info("capture in place", extra={"proven": ", ".join(proven), "exempt": plan.exempt_by})


if __name__ == "__main__":
    main()
