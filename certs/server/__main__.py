"""`python -m certs.server`: the CA."""

import logging
import sys

import uvloop

from certs.authority.keys import AuthorityRefused
from certs.server.app import run
from certs.server.config import CaConfig
from kit.logs import start_logging
from kit.settings import Settings
from kit.undumpable import forbid_dumps


def main() -> None:
    forbid_dumps()
    config = CaConfig.from_settings(Settings())
    start_logging()
    try:
        uvloop.run(run(config))
    except AuthorityRefused as e:
        logging.getLogger("certs.server").critical(
            "this certificate authority cannot be used", extra={"error": str(e)}
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
