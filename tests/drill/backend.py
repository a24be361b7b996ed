#!/usr/bin/env python3
"""A backend for drills: POST /api/chat keeps a session, and every request has its line in the log.

    backend.py PORT FILE [--no-sessions] [--lose N] [--silent] [--flood BYTES]

Sessions are lines of FILE. --no-sessions answers 404; --lose N acknowledges each Nth session without
keeping it; --silent writes no lines; --flood writes so many bytes more, with each request but the first three.
"""
import argparse
import http.server
import json
import os
import sys

asked = argparse.ArgumentParser()
asked.add_argument("port", type=int)
asked.add_argument("file")
asked.add_argument("--no-sessions", action="store_true")
asked.add_argument("--lose", type=int, default=0)
asked.add_argument("--silent", action="store_true")
asked.add_argument("--flood", type=int, default=0)
asked = asked.parse_args()
count = 0


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, form, *words):
        """Called before the answer goes out."""
        if not asked.silent:
            sys.stdout.write(form % words + "\n")
            if asked.flood and count > 3:
                sys.stdout.write(("x" * 99 + "\n") * (asked.flood // 100))
            sys.stdout.flush()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        global count
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if asked.no_sessions:
            self.send_error(404)
            return
        count += 1
        if not asked.lose or count % asked.lose:
            with open(asked.file, "a") as file:
                file.write(json.loads(body)["id"] + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.do_GET()


http.server.ThreadingHTTPServer(("127.0.0.1", asked.port), Handler).serve_forever()
