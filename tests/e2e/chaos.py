"""The two programs of test_chaos.py: `serve <port>` and `drive <host> <port> <seed> <links> <at once>`.

Each knows every byte that the other may send (tests/plans.py).
"""

import asyncio
import json
import random
import socket
import struct
import sys
import time
from typing import Any

from tests.plans import GREETING, HEAD, Plan, read, reset, write

TRAILER = struct.Struct("!Q?")
"""The app's last word: how much came, and whether it is what was sent."""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One link. What should never be is printed: a line that begins with `wrong`."""
    try:
        plan = Plan.of(HEAD.unpack(await reader.readexactly(HEAD.size))[0])
        writer.write(GREETING)
        if plan.kind == "app_resets":
            got = await read(reader, plan.reset_after)
            reset(writer)
        elif plan.kind == "half_close":  # all of the question first
            got = await read(reader)
            await write(writer, plan.down + TRAILER.pack(len(got), plan.up.startswith(got)))
        else:
            answering = asyncio.ensure_future(write(writer, plan.down))
            got = await read(reader, slow=plan.kind == "slow_app")
            await answering
            await write(writer, TRAILER.pack(len(got), plan.up.startswith(got)))
        if not plan.up.startswith(got):
            print("wrong", plan.kind, plan.number, len(got), flush=True)
    except (OSError, asyncio.IncompleteReadError):
        pass  # the other end has reset, or a proxy between was killed
    finally:
        writer.close()


async def client(host: str, port: int, number: int) -> dict[str, Any]:
    """One link: `end` is `whole` (all came, and the app says that all came there), `reset`, `cut` (some
    of it came, and all of that is right), `nothing`, or `wrong`."""
    plan = Plan.of(number)
    said: dict[str, Any] = {"number": number, "kind": plan.kind, "end": "nothing", "error": ""}
    sock = socket.socket()
    if plan.kind == "slow_client":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    sock.bind(("0.0.0.0", 0))  # so that the port is known of one that is reset at once
    said["port"] = sock.getsockname()[1]
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    except OSError as e:
        sock.close()
        return {**said, "error": type(e).__name__}
    said["sent"], said["received"] = (
        HEAD.size + len(plan.up),
        len(GREETING) + len(plan.down) + TRAILER.size,
    )
    got = bytearray()
    try:
        async with asyncio.timeout(90):
            writer.write(HEAD.pack(number))
            if plan.kind == "client_resets":
                got += await reader.readexactly(1)  # there is a link
                await write(writer, plan.up[: plan.reset_after])
                reset(writer)
                return {**said, "end": "reset"}
            asking = asyncio.ensure_future(write(writer, plan.up, end=True))
            try:
                while piece := await reader.read(65536):
                    got += piece
                    if plan.kind == "slow_client" and len(got) < 100_000:
                        await asyncio.sleep(0.002)
            finally:
                asking.cancel()
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as e:
        said["error"] = type(e).__name__
    finally:
        writer.close()
    said["end"] = _judge(plan, bytes(got), said["error"])
    return said


def _judge(plan: Plan, got: bytes, error: str) -> str:
    whole = GREETING + plan.down + TRAILER.pack(len(plan.up), True)
    if plan.kind == "app_resets":
        if got not in (b"", GREETING):
            return "wrong"
        return "reset" if error == "ConnectionResetError" else "cut"
    if got == whole and not error:
        return "whole"
    # The trailer tells what had come when the answer ended: after a cut that may be less.
    answer, trailer = got[: len(whole) - TRAILER.size], got[len(whole) - TRAILER.size :]
    right = whole.startswith(answer) and (len(trailer) < TRAILER.size or trailer[-1:] == b"\x01")
    return ("cut" if got else "nothing") if right else "wrong"


async def drive(host: str, port: int, seed: int, links: int, at_once: int) -> None:
    """Prints how many links are over, now and then, and at last what became of each."""
    draw = random.Random(seed)
    gate, over = asyncio.Semaphore(at_once), 0

    async def one(number: int) -> dict[str, Any]:
        nonlocal over
        async with gate:
            began = time.time_ns()
            said = await client(host, port, number)
            over += 1
            if over % max(1, links // 20) == 0:
                print(json.dumps({"over": over}), flush=True)
            return {**said, "began": began, "ended": time.time_ns()}

    numbers = [draw.getrandbits(63) for _ in range(links)]
    print(json.dumps({"links": await asyncio.gather(*map(one, numbers))}), flush=True)


async def main(argv: list[str]) -> None:
    if argv[0] == "serve":
        server = await asyncio.start_server(serve, "", int(argv[1]), backlog=1024)
        await server.serve_forever()
    else:
        await drive(argv[1], *map(int, argv[2:6]))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
