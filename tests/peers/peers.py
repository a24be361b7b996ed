"""Receivers of alerts that are not ours: an SMTP server with STARTTLS and a login, an HTTPS server.

Each message is a line of JSON on standard output. Refuses: anything but loopback.
"""

import email
import email.policy
import http.server
import json
import ssl
import sys


def tell(what):
    print(json.dumps(what), flush=True)


def context(here):
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(here + "/server.pem", here + "/server.key")
    return made


def smtp(here, port):
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import AuthResult

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            defects = [str(defect) for part in mail.walk() for defect in part.defects]
            tell({
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "subject": mail["subject"],
                "message_id": mail["message-id"],
                "date": mail["date"].datetime.isoformat(),
                "text": mail.get_body().get_content(),
                "defects": defects,
                "tls": session.ssl is not None,
                "user": session.auth_data,
            })
            return "250 taken"

    def login(server, session, envelope, mechanism, data):
        user, password = data.login.decode(), data.password.decode()
        return AuthResult(success=password.startswith("canary"), auth_data=user + ":" + password)

    controller = Controller(
        Handler(), hostname="127.0.0.1", port=port, tls_context=context(here),
        require_starttls=True, auth_required=True, authenticator=login,
    )
    controller.start()
    tell({"ready": True})
    sys.stdin.read()
    controller.stop()


def https(here, port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            tell({"path": self.path, "body": body, "signature": self.headers["upright-signature"]})
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.socket = context(here).wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    tell({"ready": True})
    server.serve_forever()


{"smtp": smtp, "https": https}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
