"""`python -m registry`: the registry."""

import uvloop

from kit.logs import start_logging
from kit.settings import Settings
from kit.undumpable import forbid_dumps
from registry.app import run
from registry.config import RegistryConfig


def main() -> None:
    forbid_dumps()
    config = RegistryConfig.from_env(Settings())
    start_logging(config.log_level)
    uvloop.run(run(config))


if __name__ == "__main__":
    main()
