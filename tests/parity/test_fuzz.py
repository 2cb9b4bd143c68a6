"""Ten thousand bad inputs to the labelling page and to the reader of comparisons: no crash, no lost label, each refused
with a message."""

import json
import re

import pytest

from minialign.lab.labelling.page import create_app
from minialign.lab.labelling.reward import LiveReward
from minialign.lab.labelling.store import LabelStore
from minialign.rlhf.comparisons import read_comparisons
from minialign.runs.errors import UserError

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
MANY = hypothesis.settings(max_examples=5000, deadline=None, derandomize=True, database=None,
                           suppress_health_check=list(hypothesis.HealthCheck))
GOOD = {"Host": "127.0.0.1:8123", "Origin": "http://127.0.0.1:8123"}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
message = st.fixed_dictionaries({"content": anything}, optional={"role": anything})
value = anything | st.lists(message, max_size=3)
names = ("prompt", "chosen", "rejected", "annotator", "confidence", "shown_first", "time", "choice", "id", "undo",
         "again")
record = st.fixed_dictionaries({}, optional={name: value | st.sampled_from(["a", "b", "tie", "chosen", 1])
                                             for name in names})
line = record.map(json.dumps) | anything.map(json.dumps) | st.text(max_size=20)
keys = st.sampled_from(["0a", "1a", "2a", "7a", "0b", "9a"])
request = st.fixed_dictionaries(
    {}, optional={"tab": anything | st.just("t"), "key": anything | keys, "choice": anything | st.just("tie"),
                  "confidence": value, "seconds": value}
)
body = (request.map(lambda r: json.dumps(r).encode()) | st.binary(max_size=40)
        | anything.map(lambda x: json.dumps(x).encode()))
known = st.sampled_from(["/api/label", "/api/undo", "/api/release", "/api/question", "/"])
# the test client would take these signs apart
path = known | st.text(max_size=10).map(lambda t: "/" + re.sub(r"[/?#\\]", "", t))


@MANY
@hypothesis.given(lines=st.lists(line, min_size=1, max_size=4))
def test_the_reader_of_comparisons_takes_a_file_or_says_what_is_wrong_with_it(tmp_path_factory, lines):
    file = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        kept, left_out = read_comparisons(file)
    except UserError as error:
        assert "fuzz.jsonl" in str(error)
    else:
        for comparison in kept:
            assert all(isinstance(comparison[name], str) for name in ("prompt", "chosen",
                "rejected")) and comparison["chosen"] != comparison["rejected"]
        assert len(kept) + sum(left_out.values()) <= len(file.read_text(encoding="utf-8").split("\n"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    pairs = [{"prompt": f"p{i}", "first": "a", "second": "b", "first_policy": "x", "second_policy": "y"}
             for i in range(8)]
    store = LabelStore(folder / "labels.jsonl", pairs, "Ada", 0)
    yield store, create_app(store, LiveReward(folder, folder, "Ada", pairs), "secret", 8123).test_client()
    store.close()


@MANY
@hypothesis.given(path=path, data=body, post=st.booleans(), token=st.just("secret") | st.text(max_size=8),
                  json_type=st.booleans())
def test_the_page_refuses_with_a_message_and_loses_no_label(page, path, data, post, token, json_type):
    store, client = page
    before = store.path.read_bytes()
    headers = GOOD | {"Content-Type": "application/json" if json_type else "text/plain"}
    answer = client.open(path=path, query_string={"token": token, "tab": "t"}, data=data, headers=headers,
                         method="POST" if post else "GET")
    assert answer.status_code in (200, 308, 400, 403, 404, 405, 409, 413, 415), answer.status_code
    if answer.status_code >= 400:
        assert answer.json["error"] and store.path.read_bytes() == before
    assert store.path.read_bytes().startswith(before)
    if token != "secret":
        assert answer.status_code == 403
    # what was taken is whole, and what a new start would find
    if answer.status_code == 200 and store.path.read_bytes() != before:
        again = LabelStore(store.path, store.pairs, "Ada", 0)
        assert [label["id"] for label in again.labels] == [label["id"] for label in store.labels] and not again.mended
        again.close()
