"""The health endpoints say what the program says of itself, and nothing more."""

import aiohttp
import pytest

from kit.health import serve_health


async def test_readiness_follows_the_program_and_liveness_does_not() -> None:
    ready = False
    server = await serve_health(0, lambda: ready, "127.0.0.1")
    base = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession() as session:

        async def status(path: str) -> int:
            async with session.get(base + path) as answer:
                return answer.status

        assert (await status("/healthz"), await status("/readyz")) == (200, 503)
        ready = True
        assert (await status("/healthz"), await status("/readyz")) == (200, 200)
        assert await status("/debug") == 404
    await server.close()


async def test_a_taken_port_is_an_error_at_once() -> None:
    first = await serve_health(0, lambda: True, "127.0.0.1")
    with pytest.raises(OSError):
        await serve_health(first.port, lambda: True, "127.0.0.1")
    await first.close()
