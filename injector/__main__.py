"""`python -m injector`: the mutating webhook."""

import uvloop

from injector.app import run
from injector.config import InjectorConfig
from kit.logs import start_logging
from kit.settings import Settings
from kit.undumpable import forbid_dumps


def main() -> None:
    forbid_dumps()
    config = InjectorConfig.from_env(Settings())
    start_logging(config.log_level)
    uvloop.run(run(config))


if __name__ == "__main__":
    main()
