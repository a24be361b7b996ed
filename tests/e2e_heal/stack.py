"""The example's backend, with a resync that goes wrong as the file RESYNC says: `fail N` (so
many times 503), `slow N` (so many times no answer for 10 s), `late N` (after 2 s). Each call
becomes a line of CALLS.
"""

import asyncio
import os
import time

from app import app as example


def fault():
    """What this call does; counts it down."""
    try:
        with open(os.environ["RESYNC"]) as file:
            kind, left = file.read().split()
    except (FileNotFoundError, ValueError):
        return ""
    if int(left) == 0:
        return ""
    with open(os.environ["RESYNC"], "w") as file:
        file.write(f"{kind} {int(left) - 1}")
    return kind


async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/api/recovery/state_resync":
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}\n")
        kind = fault()
        await asyncio.sleep({"slow": 10, "late": 2}.get(kind, 0))
        if kind == "fail":
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            return await send({"type": "http.response.body"})
    await example(scope, receive, send)
