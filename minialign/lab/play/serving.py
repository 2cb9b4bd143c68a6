r"""The page on 127.0.0.1, with the labelling page's guard: a token in the address, this computer's names only.

Read next: page.py (what is served).
"""

from __future__ import annotations

import secrets
import socket

from flask import Flask, Response
from werkzeug.serving import make_server

from minialign.lab.labelling.page import LOCAL, QuietHandler, guard
from minialign.lab.play.page import RULES
from minialign.runs.errors import UserError


class PlayPage:
    """A page, served on this computer only: `url` is its address; `wait` for Ctrl-C.

    Args:
        content: of the page; port: 0 takes a free one.
    Raises:
        UserError: the port is in use.
    """

    def __init__(self, content: str, port: int = 0):
        token = secrets.token_urlsafe(16)
        try:
            listener = socket.create_server((LOCAL[0], port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} cannot be had ({getattr(error, 'strerror', error)}); choose another --port, "
                            f"or 0 for any that is free") from None
        with listener:
            port = listener.getsockname()[1]
            self.server = make_server(LOCAL[0], port, create_app(content, token, port), threaded=True,
                                      request_handler=QuietHandler, fd=listener.fileno())
        self.url = f"http://{LOCAL[0]}:{port}/?token={token}"

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            self.server.serve_forever()
        finally:
            self.server.server_close()


def create_app(content: str, token: str, port: int) -> Flask:
    """The page as a Flask application, guarded as the labelling page is."""
    app = Flask(__name__, static_folder=None)
    guard(app, token, port)

    @app.get("/")
    def page():
        rules = f"{RULES}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        return Response(content, mimetype="text/html", headers={"Content-Security-Policy": rules})

    return app
