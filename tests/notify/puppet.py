"""A service that does what the test tells it: Python expressions over a datagram socket.

usage: puppet.py DIR NAME   (listens on DIR/NAME.ctl)
"""
import array
import ctypes
import os
import signal
import socket
import sys
import threading
import time

HOME, NAME = sys.argv[1], sys.argv[2]


def say(text, fds=()):
    """One datagram, as sd_notify(3) would send it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"])
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        notify.sendmsg([text.encode()], control)


def barrier():
    """Returns when everything said before is dealt with."""
    read, write = os.pipe()
    say("BARRIER=1", [write])
    os.close(write)
    rest = os.read(read, 1)
    os.close(read)
    return rest


def fork(name):
    """A child that listens under a name of its own."""
    pid = os.fork()
    if pid == 0:
        serve(name)
    return pid


def blurt(text):
    """A process that says one thing, ends, and is reaped."""
    pid = os.fork()
    if pid == 0:
        say(text)
        os._exit(0)
    os.waitpid(pid, 0)


def memfd(text):
    fd = os.memfd_create("stored")
    os.write(fd, text.encode())
    return fd


def stored():
    """What sd_listen_fds(3) gives: [(name, content)], none where it is not for us."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = os.environ["LISTEN_FDNAMES"].split(":")
    assert len(names) == int(os.environ["LISTEN_FDS"])
    return [(name, os.pread(3 + at, 1000, 0).decode()) for at, name in enumerate(names)]


def ping(every):
    def loop():
        while True:
            say("WATCHDOG=1")
            time.sleep(every)
    threading.Thread(target=loop, daemon=True).start()


def flood(text):
    def loop():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect(os.environ["NOTIFY_SOCKET"])
            while True:
                notify.send(text.encode())
    threading.Thread(target=loop, daemon=True).start()


def serve(name):
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = f"{HOME}/{name}.ctl"
    if os.path.exists(path):
        os.unlink(path)
    control.bind(path)
    while True:
        code, sender = control.recvfrom(65536)
        try:
            try:
                answer = repr(eval(code.decode(), globals()))
            except SyntaxError:
                exec(code.decode(), globals())
                answer = "None"
        except Exception as error:
            answer = f"raised {error!r}"
        control.sendto(answer.encode(), sender)


if __name__ == "__main__":
    # The words of the command line come first: what it says before anybody tells it to.
    for words in sys.argv[3:]:
        exec(words, globals())
    serve(NAME)
