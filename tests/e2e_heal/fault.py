"""A backend under uvicorn with one fault, named in the file FAULT; without the file it is sound.

The fault begins a moment after it was found ready (or at once, where it is about starting).
When, in nanoseconds of CLOCK_BOOTTIME, becomes a line of the file STAMPS.
"""

import os
import signal
import threading
import time

try:
    with open(os.environ["FAULT"]) as file:
        FAULT = file.read().strip()
except FileNotFoundError:
    FAULT = ""

faulty = False


def stamp():
    with open(os.environ["STAMPS"], "a") as file:
        file.write(f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}\n")


def begin():
    global faulty
    faulty = True
    stamp()
    if FAULT == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)


if FAULT == "crash-loops":
    stamp()
    os._exit(3)
if FAULT == "never-ready":
    stamp()
timer = threading.Timer(0.2, begin)
timer.daemon = True


async def lifespan(receive, send):
    await receive()
    if FAULT == "ignores-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if faulty and FAULT == "closes":
        return send.__self__.transport.abort()  # as near to the socket as an ASGI application comes
    status = 200
    if scope["path"] == "/ready":
        status = 503 if FAULT == "never-ready" else 200
        if status == 200 and FAULT and not timer.ident:
            timer.start()
    elif faulty and FAULT in ("answers-500", "ignores-term"):
        status = 500
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
