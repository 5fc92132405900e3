"""`python -m sidecar`: the container `podlink-proxy`."""

import asyncio
import gc
import logging
import sys

import uvloop

from certs.client.ca import CaClient
from kit.logs import start_logging
from kit.settings import Settings
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from sidecar.telemetry.config import TelemetryConfig

_log = logging.getLogger("podlink.sidecar")


def main() -> None:
    settings = Settings()
    config = SidecarConfig.from_settings(settings)
    telemetry = TelemetryConfig.from_settings(settings)
    start_logging(config.log_level)
    # What is imported lives as long as the process: keep the collector from walking it each time.
    gc.freeze()
    try:
        uvloop.run(_run(config, telemetry))
    except OSError as e:
        _log.error("cannot start", extra={"error": str(e)})
        sys.exit(1)


async def _run(config: SidecarConfig, telemetry: TelemetryConfig) -> None:
    source = CaClient(
        ca_address=config.ca_address,
        token_path=config.token_path,
        bundle_path=config.bundle_path,
        trust_domain=config.trust_domain,
    )
    sidecar = Sidecar(asyncio.get_running_loop(), config, telemetry, source)
    await sidecar.run_until_signalled()


if __name__ == "__main__":
    main()
