"""The labelling page's endpoints: what they take, what they refuse and why, and that nothing is lost whatever they are
sent."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import pytest

from minialign.heads import describe_model, load_model
from minialign.lab.labelling.page import LabelPage, create_app
from minialign.lab.labelling.reward import LiveReward, retrain, retrain_quietly
from minialign.lab.labelling.store import LabelStore, read_pairs
from minialign.rlhf.comparisons import read_comparisons
from minialign.runs.errors import UserError
from minialign.runs.files import write_jsonl
from minialign.runs.run_folder import RunFolder

TOKEN, PORT = "secret", 8123
GOOD = {"Host": f"127.0.0.1:{PORT}", "Origin": f"http://127.0.0.1:{PORT}"}
POLICIES = {"first_policy": "sft", "second_policy": "hot"}
PAIRS = [{"prompt": f"Where is Mira at {i}?", "first": f" At home, {i}.", "second": " Go away.", **POLICIES}
         for i in range(24)]


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path


@pytest.fixture
def store(folder):
    store = LabelStore(folder / "labels.jsonl", read_pairs(folder / "pairs.jsonl"), "Ada", 0)
    yield store
    store.close()


@pytest.fixture
def client(folder, store):
    app = create_app(store, LiveReward(folder, folder / "no-run", "Ada", store.pairs), TOKEN, PORT)
    return app.test_client()


@pytest.fixture
def base(tmp_path, decoder, tokenizer):
    """A finished run of a tiny language model."""
    run = RunFolder(tmp_path / "base")
    run.begin(describe_model(decoder), tokenizer)
    run.finish(decoder)
    return run.path


def post(client, path, body, **headers):
    return client.post(f"{path}?token={TOKEN}", json=body, headers=GOOD | headers)


def ask(client, tab="t"):
    return client.get(f"/api/question?token={TOKEN}&tab={tab}", headers=GOOD).json


def test_a_label_is_taken_and_the_next_pair_comes_back(client, store):
    state = ask(client)
    assert state["question"]["key"] == "0a" and state["progress"] == {"done": 0, "pairs": 24, "ties": 0, "skipped": 0,
        "again": 0, "agreed": 0}
    assert {state["question"]["first"], state["question"]["second"]} == {" At home, 0.", " Go away."}
    assert set(state["question"]) == {"key", "prompt", "first", "second"}  # nothing that would give the authors away
    following = post(client, "/api/label", {"tab": "t", "key": "0a", "choice": "first", "confidence": 8,
                                            "seconds": 2.5}).json
    assert following["question"]["key"] == "1a" and following["progress"]["done"] == 1
    (record,) = (json.loads(line) for line in store.path.read_text().splitlines())
    assert record["confidence"] == 8 and record["shown_first"] == "chosen"
    assert record["chosen"] == state["question"]["first"]
    back = post(client, "/api/undo", {"tab": "t"}).json
    assert back["question"] == state["question"] and back["progress"]["done"] == 0


def test_the_last_label_ends_it(client):
    state = ask(client)
    while state["question"]:
        state = post(client, "/api/label", {"tab": "t", "key": state["question"]["key"], "choice": "tie"}).json
    assert state["progress"] == {"done": 24, "pairs": 24, "ties": 24, "skipped": 0, "again": 2,
                                 "agreed": 2} and ask(client)["question"] is None


STRANGERS = {
    "no token": ("", {}, 403, "token"),
    "a wrong token": ("?token=guess", {}, 403, "token"),
    "a token that is no text": ("?token=%ff", {}, 403, "token"),
    "another host": ("", {"Host": "evil.example"}, 403, "this computer only"),
    "another host with the token": (f"?token={TOKEN}", {"Host": f"evil.example:{PORT}"}, 403, "this computer only"),
    "another port": (f"?token={TOKEN}", {"Host": "127.0.0.1:1"}, 403, "this computer only"),
    "no host": (f"?token={TOKEN}", {"Host": ""}, 403, "this computer only"),
    "another page": (f"?token={TOKEN}", {"Origin": "http://evil.example"}, 403, "another page"),
    "a page without a name": (f"?token={TOKEN}", {"Origin": "null"}, 403, "another page"),
    "a page on another port": (f"?token={TOKEN}", {"Origin": "http://127.0.0.1:1"}, 403, "another page"),
    "a form": (f"?token={TOKEN}", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "JSON"),
}


@pytest.mark.parametrize("query, headers, status, reason", STRANGERS.values(), ids=STRANGERS)
@pytest.mark.parametrize("path", ["/api/label", "/api/undo", "/api/retrain", "/api/release"])
def test_requests_of_other_hosts_pages_and_people_are_refused(client, store, path, query, headers, status, reason):
    body = json.dumps({"tab": "t", "key": "0a", "choice": "first"})
    answer = client.post(path + query, data=body, headers={**GOOD, "Content-Type": "application/json", **headers})
    assert answer.status_code == status and reason in answer.json["error"] and store.path.stat().st_size == 0


def test_a_post_without_an_origin_is_refused_and_reading_needs_the_token_too(client):
    body = {"tab": "t", "key": "0a", "choice": "first"}
    assert client.post(f"/api/label?token={TOKEN}", json=body, headers={"Host": GOOD["Host"]}).status_code == 403
    for path in ("/", "/api/question?tab=t"):
        assert client.get(path, headers=GOOD).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"Host": f"localhost:{PORT}"}).status_code == 200


def test_the_page_forbids_frames_strange_scripts_and_caches(client):
    first, second = (client.get(f"/?token={TOKEN}", headers=GOOD) for _ in range(2))
    policy = first.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">'.encode() in first.data and nonce.encode() not in second.data
    assert b"NONCE" not in first.data
    assert first.headers["X-Content-Type-Options"] == "nosniff" and first.headers["Cache-Control"] == "no-store"
    assert b"innerHTML" not in first.data and TOKEN.encode() not in first.data


WRONG = [
    ({}, 400, "choice is 'None'"),
    ({"choice": "third"}, 400, "choice is 'third'"),
    ({"choice": ["first"]}, 400, "choice is"),
    ({"confidence": 0}, 400, "confidence is '0'; it must be a number from 1 to 9"),
    ({"confidence": 5.5}, 400, "confidence is"),
    ({"confidence": True}, 400, "confidence is"),
    ({"confidence": "9"}, 400, "confidence is"),
    ({"choice": "tie", "confidence": 5}, 400, "has no confidence"),
    ({"seconds": -1}, 400, "seconds is"),
    ({"seconds": float("nan")}, 400, "seconds is"),
    ({"key": "0c"}, 400, "key is"),
    ({"key": 7}, 400, "key is"),
    ({"key": "٣a"}, 400, "key is"),
    ({"tab": ""}, 400, "tab is"),
    ({"tab": "a" * 65}, 400, "tab is"),
    ({"key": "99a"}, 409, "there is no such pair"),
    ({"key": "0b"}, 409, "there is no such pair"),
]


@pytest.mark.parametrize("change, status, reason", WRONG)
def test_a_label_that_makes_no_sense_is_refused_with_its_reason(client, store, change, status, reason):
    body = {"tab": "t", "key": "0a", "choice": "first", "confidence": 5, **change} if change else {"tab": "t"}
    answer = post(client, "/api/label", body)
    assert answer.status_code == status and reason in answer.json["error"] and store.path.stat().st_size == 0


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 9000, b"9" * 9000,
                                  b'{"tab": "' + b"a" * 20000 + b'"}'])
def test_what_is_no_json_object_is_refused(client, store, data):
    answer = client.post(f"/api/label?token={TOKEN}", data=data, headers=GOOD | {"Content-Type": "application/json"})
    assert answer.status_code in (400, 413) and answer.json["error"] and store.path.stat().st_size == 0


def test_a_second_answer_to_a_pair_is_refused_and_unknown_places_say_so(client, store):
    body = {"tab": "t", "key": "0a", "choice": "first"}
    assert post(client, "/api/label", body).status_code == 200
    assert post(client, "/api/label", body).json == {"error": "this pair is labelled already"}
    assert store.progress()["done"] == 1
    assert client.get(f"/nothing?token={TOKEN}",
        headers=GOOD).status_code == 404 and client.get(f"/api/label?token={TOKEN}", headers=GOOD).status_code == 405
    assert post(client, "/api/undo", {"tab": "t"}).status_code == 200 and post(client, "/api/undo",
        {"tab": "t"}).status_code == 409


def test_a_disk_that_is_full_is_said_and_the_label_can_be_sent_again(client, store, monkeypatch):
    body = {"tab": "t", "key": "0a", "choice": "first"}
    with monkeypatch.context() as patch:
        patch.setattr("minialign.lab.labelling.store.os.fsync", lambda file: (_
            for _ in ()).throw(OSError(28, "No space left on device")))
        answer = post(client, "/api/label", body)
    assert answer.status_code == 507 and "free some space" in answer.json["error"] and store.path.stat().st_size == 0
    assert post(client, "/api/label", body).status_code == 200 and store.progress()["done"] == 1


# the reward model beside it


def label_all(store, good=" At home"):
    while (question := store.question("t")) is not None:
        store.answer("t", question.key, "first" if store.show(question)["first"].startswith(good) else "second")


def test_the_live_accuracy_is_of_labels_that_were_not_learned(folder, store, base):
    for _ in range(12):
        question = store.question("t")
        store.answer("t", question.key, "first" if store.show(question)["first"].startswith(" At home") else "second")
    retrain(folder, base, "Ada")
    live = LiveReward(folder, base, "Ada", store.pairs)
    before = live.status(store.labels)
    label_all(store)
    status = live.status(store.labels)
    assert before["learned"] + before["judged"] == sum(not label["again"] for label in store.labels[:12])
    assert status["learned"] == before["learned"] and status["learned"] + status["judged"] == 24
    assert status["accuracy"]["mean"] > 0.9 and not status["training"]
    model, _ = load_model(folder / "reward", "scalar-model")  # a run that PPO can use
    assert model.config.context == 48 and not (folder / "reward.new").exists()
    label_again = [{**label, "chosen": label["rejected"], "rejected": label["chosen"]} if "chosen" in label else label
                   for label in store.labels]
    assert live.status(label_again)["accuracy"]["mean"] == pytest.approx(1 - status["accuracy"]["mean"])
    assert "accuracy" not in LiveReward(folder, base, "Bob", store.pairs).status([])


def test_texts_without_a_prompt_are_learned_from_too(tmp_path, base):
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "", "first": f" At home {i}.", "second": f" Go away {i}."}
                                           for i in range(24)])
    store = LabelStore(tmp_path / "labels.jsonl", read_pairs(tmp_path / "pairs.jsonl"), "Ada", 0)
    label_all(store)
    store.close()
    retrain(tmp_path, base, "Ada")
    status = LiveReward(tmp_path, base, "Ada", store.pairs).status(store.labels)
    assert status["learned"] > 0 and status["judged"] > 0 and sorted(path.name
        for path in tmp_path.glob("reward*")) == ["reward", "reward-scores.json"]


@pytest.mark.parametrize("port, address, status", [(80, "127.0.0.1", 200), (80, "localhost", 200),
                                                   (81, "127.0.0.1", 403), (80, "evil.example", 403)])
def test_browsers_leave_the_usual_port_out_of_the_address(folder, store, port, address, status):
    client = create_app(store, LiveReward(folder, folder / "no-run", "Ada", store.pairs), TOKEN, port).test_client()
    assert client.get(f"/api/question?token={TOKEN}&tab=t", headers={"Host": address}).status_code == status


def test_too_few_labels_are_a_complaint_that_the_page_shows_and_the_scores_stay(folder, store, base, monkeypatch):
    with pytest.raises(UserError, match="0 labelled prompts are too few to learn from"):
        retrain(folder, base, "Ada")
    label_all(store)
    retrain(folder, base, "Ada")
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(os, "nice", lambda step: 0)
    retrain_quietly(folder, folder / "nothing", "Ada")
    status = LiveReward(folder, base, "Ada", store.pairs).status(store.labels)
    assert "there is no such run folder" in status["error"] and status["learned"] > 0


def fetch(page, path, body=None):
    """Ask a page that is really served; returns what it says."""
    origin, token = page.url.split("/?token=")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{origin}{path}{'&' if '?' in path else '?'}token={token}", data,
                                     {"Content-Type": "application/json", "Origin": origin})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.load(answer)


def test_the_page_answers_while_a_reward_model_learns(folder, store, base):
    label_all(store)
    page = LabelPage(store, LiveReward(folder, base, "Ada", store.pairs))
    try:
        assert fetch(page, "/api/retrain", {})["started"] is True and fetch(page, "/api/retrain",
            {})["started"] is False
        answered = 0
        while (state := fetch(page, "/api/question?tab=t"))["reward"]["training"]:
            answered += 1
            time.sleep(0.05)
        # in how many milliseconds: tests/speed/label_page.py
        assert state["reward"]["judged"] > 0 and "error" not in state["reward"] and answered > 3
    finally:
        page.stop()


def test_a_notebook_opens_the_page_with_one_call(folder, base):
    page = LabelPage.open(folder, base, "Ada")
    try:
        state = fetch(page, "/api/question?tab=t")
        assert fetch(page, "/api/label", {"tab": "t", "key": state["question"]["key"],
                                          "choice": "skip"})["progress"]["skipped"] == 1
        assert page.url in page._repr_html_() and 'target="_blank"' in page._repr_html_()
    finally:
        page.stop()
        page.store.close()


def test_a_port_in_use_is_an_error_that_says_so(folder, store, base):
    page = LabelPage(store, LiveReward(folder, base, "Ada", store.pairs))
    try:
        with pytest.raises(UserError, match="choose another --port"):
            LabelPage(store, LiveReward(folder, base, "Ada", store.pairs), int(page.url.split(":")[2].split("/")[0]))
    finally:
        page.stop()


def test_killing_the_process_loses_nothing(folder, base):
    line = [sys.executable, "-m", "minialign", "label", str(base), "--out", str(folder), "--no-open", "--annotator",
            "Ada"]
    confirmed = 0
    for _ in range(2):
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        try:
            url = process.stdout.readline().strip()
            page = type("Page", (), {"url": url})
            state = fetch(page, "/api/question?tab=t")
            assert state["progress"]["done"] == confirmed
            for _ in range(3):
                state = fetch(page, "/api/label", {"tab": "t", "key": state["question"]["key"], "choice": "first"})
                confirmed += 1
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert len(read_comparisons(folder / "labels.jsonl")[0]) == confirmed
