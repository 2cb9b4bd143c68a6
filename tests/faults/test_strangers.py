"""The labelling page lets nobody in: raw requests of every kind to a page that is really served, and pages of another
origin in a real browser. Whatever they send, the file of labels stays as it was and the page goes on answering.

The browser's part needs chromium; left out where there is none.
"""

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import page as killed_page
import pytest

from minialign.lab.labelling.page import LARGEST, LabelPage
from minialign.lab.labelling.reward import LiveReward
from minialign.lab.labelling.store import LabelStore, read_pairs
from minialign.runs.files import write_jsonl

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LABEL = {"tab": "t", "key": "0a", "choice": "first"}


@pytest.fixture(scope="module")
def one_page(tmp_path_factory):
    """A page with one label in its file."""
    folder = tmp_path_factory.mktemp("page")
    write_jsonl(folder / "pairs.jsonl", killed_page.PAIRS[:24])
    store = LabelStore(folder / "labels.jsonl", read_pairs(folder / "pairs.jsonl"), "Ada", 0)
    store.answer("me", "5a", "first")
    served = LabelPage(store, LiveReward(folder, folder / "no-run", "Ada", store.pairs))
    yield served
    served.stop()
    store.close()


@pytest.fixture
def served(one_page):
    """The page; afterwards its labels must be what they were, and it must answer."""
    before = one_page.store.path.read_bytes()
    yield one_page
    assert one_page.store.path.read_bytes() == before, "a stranger changed the labels"
    assert killed_page.ask(one_page.url, "/api/question?tab=me")["progress"]["done"] == 1, "the page answers"


def place(served):
    """(port, token) of a page."""
    origin, token = served.url.split("/?token=")
    return int(origin.rsplit(":", 1)[1]), token


def send(port, *parts, pause=0.0, seconds=20):
    """The status line's number and the body that come back for raw bytes; 0 when the connection just ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        try:
            for part in parts:
                line.sendall(part)
                time.sleep(pause)
            line.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the page did not want to hear the rest
        found = b""
        try:
            while more := line.recv(65536):
                found += more
        except OSError:
            pass
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head.startswith(b"HTTP/") else 0, body


def request(path, body=None, method="POST", **headers):
    """The bytes of a request; `_` in a header's name is a hyphen."""
    data = json.dumps(LABEL if body is None else body).encode() if not isinstance(body, bytes) else body
    lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data


def test_foreign_hosts_origins_and_tokens_are_refused_on_the_wire(served):
    port, token = place(served)
    good = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    strangers = [("/api/label", good), ("/api/label?token=", good), (f"/api/label?token={token}x", good),
                 (f"/api/label?token={token[:-1]}", good), ("/api/label?token=" + "A" * 22, good),  # another run's
                 (f"/api/label?Token={token}", good), (f"/api/label?token=no&token={token}", good)]
    strangers += [(f"/api/label?token={token}", good | {"Host": host})
                  for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1",
                               f"127.0.0.1:{port}@evil.example", f"[::1]:{port}", f"0.0.0.0:{port}",
                               f"localhost.:{port}", "")]
    strangers += [(f"/api/label?token={token}", good | {"Origin": origin})
                  for origin in ("null", "http://evil.example", f"https://127.0.0.1:{port}", None, "",
                                 f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{port}.evil.example",
                                 f"http://127.0.0.1:{port + 1}")]
    for path, headers in strangers:
        status, body = send(port, request(path, **headers))
        assert status in (400, 403) and (status == 400 or json.loads(body)["error"]), (path, headers, status, body)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None):
        assert send(port, request(f"/api/label?token={token}", **good, Content_Type=kind))[0] == 415
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "BREW"):
        assert send(port, request(f"/api/label?token={token}", method=method, **good))[0] >= 400 or method == "OPTIONS"


PATHS = ["/../labels.jsonl", "/..%2flabels.jsonl", "/%2e%2e/labels.jsonl", "//labels.jsonl", "/./api/../labels.jsonl",
         "/static/../labels.jsonl", "/api/label/", "/api//label", "/api/label%00", "/api/label;x", "/api/label%3f",
         "/page.html", "/..\\labels.jsonl", "http://evil.example/api/label", "//evil.example/api/label",
         "/api/label#x", "*", "/" + "a" * 70000, "/\xff\xfe", "/api/%6cabel%0d%0aX: y"]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_tricks_with_paths_reach_no_file_and_change_nothing(served, path):
    port, token = place(served)
    good = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    for method, query in (("GET", f"?token={token}"), ("POST", f"?token={token}"), ("GET", "")):
        data = {"tab": "t", "key": "999999999a", "choice": "tie"}  # no such pair, should the path lead to /api/label
        status, body = send(port, request(path + query, data, method=method, **good))
        assert (status == 0 or status >= 300) and b"Mira" not in body and b"Traceback" not in body, (status, body)


def test_huge_slow_and_broken_bodies_are_refused_while_the_page_answers(served):
    port, token = place(served)
    good = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    path = f"/api/label?token={token}"
    huge = json.dumps(LABEL | {"pad": "x" * 4 * LARGEST}).encode()
    assert send(port, request(path, huge, **good))[0] in (0, 413)
    assert send(port, request(path, b"{}", **good, Content_Length="99999999999"))[0] in (0, 413)
    assert send(port, request(path, b"{}", **good, Content_Length="-1"))[0] in (0, 400, 411, 413)
    assert send(port, request(path, b"{}", **good, Content_Length="two"))[0] in (0, 400, 411, 413)
    chunked = b"fffffff\r\n" + b"x" * 100_000
    endless = request(path, chunked, **good, Transfer_Encoding="chunked", Content_Length=None)
    assert send(port, endless)[0] in (0, 400, 413)
    assert send(port, request(path, b'{"tab":' + b"[" * 9000, **good))[0] == 400
    assert send(port, b"X" * 100_000)[0] in (0, 400, 414)
    assert send(port, b"\x16\x03\x01\x02\x00\x01\xfc\x03")[0] in (0, 400)  # how TLS begins
    whole = request(path, **good)
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for line in slow:
        line.sendall(whole[:-10])  # and the rest never comes
    started = time.monotonic()
    assert killed_page.ask(served.url, "/api/question?tab=other")["question"]
    assert time.monotonic() - started < 10
    for line in slow:
        line.close()


def test_a_body_that_never_ends_does_not_hold_a_thread_for_ever(served, monkeypatch):
    from minialign.lab.labelling import page

    assert 1 <= page.QuietHandler.timeout <= 60
    monkeypatch.setattr(page.QuietHandler, "timeout", 0.3)
    port, token = place(served)
    good = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(request(f"/api/label?token={token}", **good)[:-10])
        assert line.recv(65536)[:15] != b"HTTP/1.1 200 OK"  # and not a timeout of our own


def test_two_hundred_strangers_at_once_are_refused_and_the_person_is_not(served):
    port, token = place(served)
    good = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    bad = [request("/api/label?token=wrong", **good), request(f"/api/label?token={token}", **good | {"Host": "evil"}),
           request(f"/api/label?token={token}", **good | {"Origin": "http://evil"})]
    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(send, port, bad[i % 3]) for i in range(200)]
        started = time.monotonic()
        assert killed_page.ask(served.url, "/api/question?tab=me")["question"]
        waited = time.monotonic() - started
        assert {answer.result()[0] for answer in answers} <= {403} and waited < 10


# a real browser

EVIL = """<!doctype html><title>evil</title><pre id=out></pre><iframe name=sink></iframe>
<iframe id=frame src="{origin}/?token={token}"></iframe>
<form id=plain target=sink method=post enctype="text/plain" action="{origin}/api/label?token={token}">
<input name='{{"tab":"t","key":"0a","choice":"first","x":"' value='"}}'></form>
<form id=coded target=sink method=post action="{origin}/api/undo?token={token}"><input name=tab value=t></form>
<script>
const out = [], body = JSON.stringify({{tab: "t", key: "0a", choice: "first"}});
const url = "{origin}/api/label?token={token}";
const tries = {{
  read: () => fetch("{origin}/api/question?tab=t&token={token}"),
  json: () => fetch(url, {{method: "POST", body, headers: {{"Content-Type": "application/json"}}}}),
  plain: () => fetch(url, {{method: "POST", body, mode: "no-cors"}}),
  credentials: () => fetch(url, {{method: "POST", body, mode: "no-cors", credentials: "include"}}),
}};
async function all() {{
  for (const [name, attempt] of Object.entries(tries)) {{
    try {{
      const r = await attempt();
      out.push(name + " " + r.type + " " + (r.ok ? (await r.text()).slice(0, 80) : r.status));
    }}
    catch (error) {{ out.push(name + " refused"); }}
  }}
  navigator.sendBeacon(url, new Blob([body], {{type: "text/plain"}}));
  document.getElementById("plain").submit();
  await new Promise(done => setTimeout(done, 300));
  document.getElementById("coded").submit();
  await new Promise(done => setTimeout(done, 300));
  try {{ out.push("frame " + document.getElementById("frame").contentDocument.body.textContent.slice(0, 80)); }}
  catch (error) {{ out.push("frame refused"); }}
  document.getElementById("out").textContent = out.join("|");
  document.title = "done";
}}
all();
</script>"""


@pytest.fixture
def evil(served):
    """A page of another origin that knows the address and the token; returns its port."""
    port, token = place(served)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = EVIL.format(origin=f"http://127.0.0.1:{port}", token=token).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


def browse(url, folder, *flags):
    """What the browser has made of a page after some seconds."""
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
            f"--user-data-dir={folder}", *flags, "--virtual-time-budget=8000", "--dump-dom", url]
    return subprocess.run(line, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_forms_and_scripts_of_another_origin_neither_read_nor_change_anything(served, evil, tmp_path):
    seen = browse(f"http://127.0.0.1:{evil}/", tmp_path / "profile")
    assert "read refused|json refused|plain " in seen and "frame refused" in seen, seen
    assert "Mira" not in seen


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_a_name_that_is_made_to_point_here_is_refused(served, tmp_path):
    port, token = place(served)
    rules = f"--host-resolver-rules=MAP evil.example 127.0.0.1:{port}"
    seen = browse(f"http://evil.example:{port}/api/question?tab=t&token={token}", tmp_path / "profile", rules)
    assert "this page is for this computer only" in seen and "Mira" not in seen, seen
    mine = browse(f"http://127.0.0.1:{port}/api/question?tab=t&token={token}", tmp_path / "profile")
    assert "Mira" in mine, "the browser does reach the page"
