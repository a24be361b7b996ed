"""Writes numbered lines to stdout and stderr, and notes in a file how far it is.

usage: writer.py PROGRESS_DIR LINES BATCH

Each stream gets `NAME N padding` for N = 0, 1, 2, … up to LINES, in writes of at most 4096 bytes
(pipe(7): atomic). NAME is its pid and, for pids come back within minutes, the time of its start
(field 22 of /proc/PID/stat). After each write the count is put into PROGRESS_DIR/NAME.STREAM, so that
whoever kills it knows what was written. It writes no more lines than PROGRESS_DIR/allowed says, where that
is there, and looks again each millisecond. At the end it waits for its own.
"""

import os
import signal
import sys
import time

directory, lines, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open("/proc/self/stat") as stat:
    name = f"{os.getpid()}-{stat.read().rsplit(')', 1)[1].split()[19]}"
notes = [os.open(f"{directory}/{name}.{stream}", os.O_CREAT | os.O_WRONLY, 0o644) for stream in (1, 2)]


def allowed():
    try:
        with open(f"{directory}/allowed") as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return lines


at = 0
while at < lines:
    time.sleep(0.001)
    count = min(batch, lines - at, allowed() - at)
    if count <= 0:
        continue
    for stream in (1, 2):
        text = "".join(f"{name} {stream} {n} {'.' * (n % 41)}\n" for n in range(at, at + count))
        data = text.encode()
        assert len(data) <= 4096
        written = os.write(stream, data)
        assert written == len(data)
        os.pwrite(notes[stream - 1], b"%020d" % (at + count), 0)
    at += count
open(f"{directory}/{name}.done", "w").close()
signal.pause()
