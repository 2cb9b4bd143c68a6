r"""The labelling page: a prompt, two answers side by side, one key; on this computer only.

    GET  /                    the page
    GET  /api/question?tab=…  pair, progress, reward model
    POST /api/label           {"tab", "key", "choice", "confidence", "seconds"}
    POST /api/undo, /api/release {"tab"}, /api/retrain

People compare better than they grade (Stiennon et al. 2020, §3.3), so the page asks which of two is better and how sure
one is, 1 to 9, as the summarisation data records it. Details that matter:
    1. A label is on disk before the next pair shows (store.py); killing the process loses none
       (test_killing_the_process_loses_nothing).
    2. Any page in the browser can send requests to 127.0.0.1. So every request needs the token of the address that was
       printed, a Host that is this computer's (a stranger's name may be made to point here), and, when it changes
       something, an Origin that is this page's (test_requests_of_other_hosts_pages_and_people_are_refused).
    3. The texts are shown as text, never as HTML, and a policy forbids any script but the page's own
       (test_an_answer_that_is_a_script_is_shown_and_does_not_run).
    4. Whatever is sent, and however slowly, the labels stay as they are and the page answers (tests/faults/
       test_strangers.py, in a real browser too).
    5. While a reward model learns, in another process, the page answers (reward.py;
       test_the_page_answers_while_a_reward_model_learns).

Read next: store.py, reward.py. Try it:  python -m minialign label RUN
"""

import hmac
import re
import secrets
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from minialign.lab.labelling.reward import LABELS, PAIRS, LiveReward
from minialign.lab.labelling.store import CHOICES, LabelStore, Refused, read_pairs
from minialign.runs.errors import UserError

PAGE = Path(__file__).with_suffix(".html")
LOCAL = ("127.0.0.1", "localhost")
LARGEST = 16 * 1024  # bytes of a request
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}
TAB, KEY = r"[\w-]{1,64}", r"[0-9]{1,9}[ab]"


class BadRequest(Exception):
    """A request that makes no sense, with what is wrong in it."""


STATUS = {BadRequest: 400, Refused: 409, UserError: 507}  # of what goes wrong


def text_field(body: dict, name: str, pattern: str) -> str:
    """A field of a request that must be text of a certain form."""
    value = body.get(name)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise BadRequest(f"{name} is {str(value)[:40]!r}; it must look like {pattern}")
    return value


def number_field(body: dict, name: str, low: float, high: float, kinds: tuple[type, ...]) -> Any:
    """A field of a request that may be missing, or must be a number between two limits."""
    value = body.get(name)
    if value is not None and (type(value) not in kinds or not low <= value <= high):
        raise BadRequest(f"{name} is {str(value)[:40]!r}; it must be a number from {low:g} to {high:g}")
    return value


def read_label(body: dict) -> dict[str, Any]:
    """What a label request says, checked: the arguments of LabelStore.answer."""
    choice = body.get("choice")
    if choice not in CHOICES:
        raise BadRequest(f"choice is {str(choice)[:40]!r}; it must be one of {', '.join(CHOICES)}")
    confidence = number_field(body, "confidence", 1, 9, (int,))
    if confidence is not None and choice not in ("first", "second"):
        raise BadRequest("a tie or a skipped pair has no confidence")
    return {"choice": choice, "confidence": confidence, "seconds": number_field(body, "seconds", 0, 1e6, (int, float)),
            "tab": text_field(body, "tab", TAB), "key": text_field(body, "key", KEY)}


def posted() -> dict:
    """The JSON object of a request. Raises BadRequest when it is none."""
    try:
        found = request.get_json(silent=True)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise BadRequest("the request is no JSON object")
    return found


def guard(app: Flask, token: str, port: int) -> None:
    """Let nobody in but the page itself, and answer whatever goes wrong in words. Arguments as for `create_app`."""
    hosts = {f"{name}:{port}" for name in LOCAL} | (set(LOCAL) if port == 80 else set())  # browsers leave 80 out

    @app.before_request
    def refuse_strangers():
        if request.host not in hosts:
            return {"error": f"this page is for this computer only; open it as http://{LOCAL[0]}:{port}/"}, 403
        if not hmac.compare_digest(request.args.get("token", "").encode(), token.encode()):
            return {"error": "the token is missing or wrong; open the address that the command printed"}, 403
        if request.method != "GET" and request.headers.get("Origin") not in {f"http://{host}" for host in hosts}:
            return {"error": "another page asks for this; only the labelling page may"}, 403
        if request.method != "GET" and request.mimetype != "application/json":
            return {"error": "send JSON"}, 415
        return None

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        return response

    @app.errorhandler(Exception)
    def complain(error: Exception):
        if isinstance(error, HTTPException):
            return {"error": error.description or error.name}, error.code or 500
        for kind, status in STATUS.items():
            if isinstance(error, kind):
                return {"error": str(error)}, status
        raise error


def create_app(store: LabelStore, reward: LiveReward, token: str, port: int) -> Flask:
    """The page as a Flask application.

    Args:
        store: where labels go; reward: the model beside it.
        token: what every request must carry; port: on which it is served, for the Host and Origin checks.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = LARGEST
    guard(app, token, port)

    def state(tab: str) -> Response:
        question, asked = store.question(tab), None
        if question is not None:
            shown = store.show(question)
            asked = {"key": question.key, **{name: shown[name] for name in ("prompt", "first", "second")}}
        return jsonify(question=asked, progress=store.progress(), reward=reward.status(store.labels),
                       annotator=store.annotator)

    @app.get("/")
    def page():
        nonce = secrets.token_urlsafe(16)
        text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
        rules = (f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
                 f"img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
        return Response(text, mimetype="text/html", headers={"Content-Security-Policy": rules})

    @app.get("/api/question")
    def question():
        return state(text_field(request.args, "tab", TAB))

    @app.post("/api/label")
    def label():
        said = read_label(posted())
        store.answer(**said)
        return state(said["tab"])

    @app.post("/api/undo")
    def undo():
        tab = text_field(posted(), "tab", TAB)
        if store.undo(tab) is None:
            raise Refused("there is nothing to take back")
        return state(tab)

    @app.post("/api/release")
    def release():
        store.release(text_field(posted(), "tab", TAB))
        return jsonify()

    @app.post("/api/retrain")
    def retrain():
        return jsonify(started=reward.start(), reward=reward.status(store.labels))

    return app


class QuietHandler(WSGIRequestHandler):
    """No line in the terminal for every request; the token would stand in each. Who sends nothing for so long lets go
    of the thread that listens to it."""

    timeout = 30  # seconds

    def log(self, type: str, message: str, *args) -> None:
        """Say nothing."""


def local_server(app: Callable[[str, int], Flask], port: int) -> tuple[BaseWSGIServer, str]:
    """A server on this computer only, and its address; `app` makes what it serves of a token and a port.

    Raises:
        UserError: the port is in use.
    """
    token = secrets.token_urlsafe(16)
    try:
        listener = socket.create_server((LOCAL[0], port))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be had ({getattr(error, 'strerror', error)}); choose another --port, or 0 "
                        f"for any that is free") from None
    with listener:
        port = listener.getsockname()[1]
        server = make_server(LOCAL[0], port, app(token, port), threaded=True, request_handler=QuietHandler,
                             fd=listener.fileno())
    return server, f"http://{LOCAL[0]}:{port}/?token={token}"


class LabelPage:
    """The page, served in the background: `url` is its address; show it in a notebook, or `wait` for Ctrl-C.

    Args:
        store, reward: as for `create_app`; port: 0 takes a free one.
    Raises:
        UserError: the port is in use.
    """

    def __init__(self, store: LabelStore, reward: LiveReward, port: int = 0):
        self.store, self.reward = store, reward
        self.server, self.url = local_server(partial(create_app, store, reward), port)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @classmethod
    def open(cls, folder: Path, run: Path, annotator: str = "me", seed: int = 0, port: int = 0) -> "LabelPage":
        """The page on the pairs of a folder that `minialign label` or `minialign compare` made (pairs.jsonl); for
        notebooks."""
        pairs = read_pairs(Path(folder) / PAIRS)
        return cls(LabelStore(Path(folder) / LABELS, pairs, annotator, seed), LiveReward(folder, run, annotator, pairs),
                   port)

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            while self.thread.is_alive():
                self.thread.join(0.5)
        finally:
            self.stop()

    def stop(self) -> None:
        """End the server and the training beside it; every label is on disk already."""
        self.server.shutdown()
        self.server.server_close()
        self.reward.stop()

    def _repr_html_(self) -> str:
        """In a notebook: a link, since the page forbids every other page to show it in a frame."""
        return f'<a href="{self.url}" target="_blank" rel="noreferrer">Open the labelling page</a>'
