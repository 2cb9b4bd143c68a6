"""The tokenizer: any text comes back, and nothing that can be typed is a special token."""

import json
import random
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import models

from minialign.batching import demonstration_row, next_token_batch
from minialign.pretrain.span_corruption import GAPS
from minialign.runs.errors import UserError
from minialign.tokenizer import (
    BEGIN,
    END,
    GREEN,
    PAD,
    PLAIN,
    RED,
    SENTINELS,
    SEPARATOR,
    SPECIAL,
    load_tokenizer,
    show_loss_mask,
    show_merges,
    train_tokenizer,
)

CURIOUS = ["", " ", "\n\n", "\r\n\t", "  two  spaces ", "naïve café", "Das Mädchen verlor 3,5 €.",
           "猫が赤い凧を失くした。", "👩‍👩‍👧 🏳️‍🌈", "\x00\x07", "\ufeffbom", "a\u0301"]


def random_texts(count, seed=0):
    rng = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x370, 0x52F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0xE000, 0xFFFF),
              (0x10000, 0x10FFFF)]
    return ["".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(60))) for _ in range(count)]


def test_any_text_comes_back_exactly(tokenizer, texts):
    for text in [*CURIOUS, *random_texts(200), *texts]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_many_texts_are_encoded_as_each_by_itself(tokenizer, texts):
    assert tokenizer.encode_many(texts) == [tokenizer.encode(text) for text in texts]


def test_text_that_it_has_read_takes_fewer_tokens_than_bytes(tokenizer, texts):
    for text in texts:
        assert len(tokenizer.encode(text)) < len(text.encode())
    assert len(tokenizer.encode("猫")) == 3


def test_special_tokens_cannot_be_typed(tokenizer):
    for name in SPECIAL:
        for text in (name, f"a{name}b", f" {name} {name}\n"):
            ids = tokenizer.encode(text)
            assert min(ids) >= len(SPECIAL), (name, ids)
            assert tokenizer.decode(ids) == text


def test_special_tokens_cannot_be_typed_even_after_reading_a_lot_of_them_and_a_round_trip_through_a_file(tmp_path):
    taught = train_tokenizer([" ".join(SPECIAL) * 20], vocabulary=400)
    (tmp_path / "tokenizer.json").write_text(taught.to_json(), encoding="utf-8")
    for tokenizer in (taught, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode("".join(SPECIAL))
        assert min(ids) >= len(SPECIAL) and tokenizer.decode(ids) == "".join(SPECIAL)


def test_pad_is_never_end(tokenizer):
    assert len({PAD, BEGIN, END, SEPARATOR}) == 4
    assert [SPECIAL[i] for i in (PAD, BEGIN, END, SEPARATOR)] == ["<pad>", "<begin>", "<end>", "<separator>"]
    assert (tokenizer.pad, tokenizer.begin, tokenizer.end, tokenizer.separator) == (PAD, BEGIN, END, SEPARATOR)
    assert [tokenizer.library.token_to_id(name) for name in SPECIAL] == list(range(len(SPECIAL)))


def test_decoding_leaves_special_tokens_out(tokenizer):
    ids = tokenizer.encode("The kite")
    assert tokenizer.decode([BEGIN, *ids, END, PAD, PAD]) == "The kite"


def test_every_sentinel_has_an_id_of_its_own(tokenizer):
    assert [tokenizer.name(i) for i in GAPS] == [f"<extra_{i}>" for i in range(SENTINELS)]


def test_training_is_the_same_every_time_and_in_every_process(texts):
    code = ("import sys, json; from minialign.tokenizer import train_tokenizer; "
            "print(train_tokenizer(json.load(sys.stdin), 320).fingerprint())")
    here = {train_tokenizer(texts, 320).fingerprint() for _ in range(3)}
    there = subprocess.run([sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True,
                           check=True).stdout.strip()
    assert here == {there}


def test_fingerprints_differ_when_any_token_differs(texts):
    fingerprints = {train_tokenizer(texts, 320).fingerprint(), train_tokenizer(texts, 321).fingerprint(),
                    train_tokenizer(texts[1:], 300).fingerprint()}
    assert len(fingerprints) == 3 and all(len(f) == 16 for f in fingerprints)


def test_a_file_keeps_everything(tokenizer, texts, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.fingerprint() == tokenizer.fingerprint() and again.size == tokenizer.size == 320
    assert again.encode_many(texts + CURIOUS) == tokenizer.encode_many(texts + CURIOUS)


def test_the_vocabulary_has_the_asked_size_or_as_many_as_the_text_gives(texts):
    assert train_tokenizer(texts, 350).size == 350
    assert train_tokenizer(["ab"], 350).size == len(SPECIAL) + 256 + 1
    assert train_tokenizer([], len(SPECIAL) + 256).size == len(SPECIAL) + 256


def test_a_vocabulary_without_room_for_the_bytes_is_an_error(texts):
    with pytest.raises(UserError, match="vocabulary is 275; it must be at least 276"):
        train_tokenizer(texts, 275)


def test_the_first_merge_is_the_most_frequent_pair():
    tokenizer = train_tokenizer(["zq zq zq zq ab ab"], len(SPECIAL) + 256 + 1)
    assert len(tokenizer.encode("zq")) == 1 and len(tokenizer.encode("ab")) == 2


@pytest.mark.parametrize("content", [None, "", "{}", "not json", '{"model": 3}', b"\xff\xfe"])
def test_a_file_that_is_no_tokenizer_is_an_error_that_names_it(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="tokenizer.json: (not a|there is no) tokenizer"):
        load_tokenizer(path)


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_somebody_else_s_tokenizer_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str())
    with pytest.raises(UserError, match="without minialign's special tokens"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_merges_are_shown_between_bars():
    tokenizer = train_tokenizer(["The kite"] * 9, 400)
    assert show_merges(tokenizer, "The kite was") == "The| kite| |w|a|s"
    assert show_merges(tokenizer, "") == ""


def test_the_loss_mask_is_green_where_the_loss_looks_and_red_elsewhere():
    tokenizer = train_tokenizer(["Who lost it? Mira"] * 9, 400)
    row, start = demonstration_row(tokenizer, tokenizer.encode("Who?"), tokenizer.encode(" Mira"))
    longer, later = demonstration_row(tokenizer, tokenizer.encode("Who?"), tokenizer.encode(" Mira Mira Mira"))
    batch = next_token_batch([row, longer], [start, later])
    shown = show_loss_mask(tokenizer, batch.tokens[0], batch.labels[0])

    def painted(colour, text):
        return f"{colour}{text}{PLAIN}"

    taught = painted(GREEN, " Mira") + painted(GREEN, "<end>")
    assert shown == painted(RED, "<begin>") + painted(RED, "Who") + painted(RED, "?") + taught


def test_half_a_character_is_an_error_not_a_crash(tokenizer):
    # what "\ud800" in JSON, or a byte that is not UTF-8 on the command line, turns into
    for text in ("a\ud800", "\udcff"):
        with pytest.raises(UserError):
            tokenizer.encode(text)
