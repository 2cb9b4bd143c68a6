r"""The page on 127.0.0.1, with the labelling page's guard: a token in the address, this computer's names only.

Read next: page.py (what is served).
"""

from functools import partial

from flask import Flask, Response

from minialign.lab.labelling.page import guard, local_server
from minialign.lab.play.page import RULES


class PlayPage:
    """A page, served on this computer only: `url` is its address; `wait` for Ctrl-C.

    Args:
        content: of the page; port: 0 takes a free one.
    Raises:
        UserError: the port is in use.
    """

    def __init__(self, content: str, port: int = 0):
        self.server, self.url = local_server(partial(create_app, content), port)

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
