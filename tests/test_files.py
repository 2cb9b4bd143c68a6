"""Files and settings that people write: read exactly, or refused with the line and the reason."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest

from minialign.batching import pack
from minialign.lab.commands.inputs import (
    given_context,
    read_documents,
    read_lines,
    read_prompts,
    refuse_judged,
    say_how_to_sample,
)
from minialign.lab.interchange.folder import read_tokenizer
from minialign.lab.interchange.published import architecture
from minialign.peft.transfer import TunedRun
from minialign.runs.errors import UserError
from minialign.runs.files import (
    fingerprint,
    held_out,
    is_jsonl,
    lines_of,
    place_of,
    read_json,
    read_jsonl,
    read_text,
    write_json,
    write_jsonl,
)
from minialign.runs.run_folder import RunFolder
from minialign.runs.settings import describe, from_dict, to_dict
from minialign.tokenizer import SpecialIds, load_tokenizer
from minialign.training import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A configuration."""

    flour: int  # grams
    sugar: float = 0.5  # share of the flour; more is #sweeter
    name: str = "cake"  # what it is called


def refused(path, match, read=read_text, *arguments):
    with pytest.raises(UserError, match=match) as error:
        read(path, *arguments)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_text_comes_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes("\ufeffnaïve\r\n猫".encode())
    assert read_text(path) == "naïve\r\n猫"


def test_text_that_cannot_be_read_is_an_error_that_says_why(tmp_path):
    path = tmp_path / "file.txt"
    refused(path, "there is no such file")
    refused(tmp_path, "cannot be read")
    for content in (b"", b"  \n\t\n", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        refused(path, "the file is empty")
    path.write_bytes("zwei\nfür\n".encode("latin-1"))
    refused(path, "file.txt, line 2: not UTF-8: byte 0xfc; save the file as UTF-8")
    path.write_bytes("text".encode("utf-16"))
    refused(path, "line 1: not UTF-8: byte 0xff")


def test_lines_of_json_come_with_their_numbers(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "n": 1}\r\n\r\n  \n{"prompt": "\xe7\x8c\xab\xe2\x80\xa8"}')
    assert read_jsonl(path, ("prompt",)) == [{"prompt": "a", "n": 1}, {"prompt": "猫\u2028"}]
    assert [place_of(record) for record in read_jsonl(path)] == [(path, 1), (path, 4)]
    assert read_jsonl(path, ()) == read_jsonl(path, ("prompt",))


@pytest.mark.parametrize(
    "line, message",
    [
        ("{broken", "not JSON"),
        ('{"prompt": "a"} {"prompt": "b"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"n": ' + "1" * 5000 + "}", "not JSON"),
        ("[1, 2]", "a list, not an object"),
        ("null", "not an object"),
        ('{"completion": "b"}', "field 'prompt' is missing; the line has 'completion'"),
        ("{}", "field 'prompt' is missing; the line has none"),
        ('{"prompt": 3, "completion": "b"}', "field 'prompt' is int"),
        ('{"prompt": null, "completion": "b"}', "field 'prompt' is NoneType"),
        ('{"prompt": "\\ud83d", "completion": "b"}', "prompt"),
    ],
    ids=lambda value: value[:24],
)
def test_a_bad_line_is_an_error_that_names_file_line_and_reason(line, message, tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n' + line + "\n", encoding="utf-8")
    refused(path, f"file.jsonl, line 3: .*{message}", read_jsonl, ("prompt", "completion"))


@pytest.mark.parametrize("record", [{"text": "a", "source": "chat \ud83d"}, {"text": "a", "\udc00": 1},
                                    {"text": "a", "about": {"tags": ["x", ["\udfff\ud800"]]}}], ids=repr)
def test_half_a_character_is_found_in_any_field_at_any_depth(record, tmp_path):
    path = tmp_path / "file.jsonl"
    write = [{"text": "\ud83d\ude00 whole, in two escapes"}, record]
    path.write_text("\n".join(map(json.dumps, write)), encoding="utf-8")
    odd = ascii(list(record)[-1])[1:-1].replace("\\", "\\\\")
    refused(path, f"file.jsonl, line 2: field '{odd}' holds half a character", read_jsonl)
    path.write_text(json.dumps(record), encoding="utf-8")
    refused(path, "holds half a character", read_json)
    path.write_text(json.dumps(write[0]), encoding="utf-8")
    assert fingerprint(read_jsonl(path)) and read_jsonl(path)[0]["text"].startswith("\U0001f600")


def test_people_may_call_their_fields_line_and_file(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('\n{"text": "To be", "line": "3.1.56", "file": "hamlet"}\n')
    (record,) = read_jsonl(path, ("text",))
    assert record == {"text": "To be", "line": "3.1.56", "file": "hamlet"} and place_of(record) == (path, 2)
    refused(path, "the line has 'text', 'line', 'file'$", read_jsonl, ("prompt",))
    assert place_of({"line": 7}) == (None, None)


ODD = "one\u2028two\x0cthree\x85four\x0bfive\x1csix\u2029seven"  # what str.splitlines takes for line breaks


def test_only_line_breaks_end_a_line(tmp_path):
    assert lines_of(f"{ODD}\nb\r\nc\rd\n") == [ODD, "b", "c", "d", ""]
    (tmp_path / "a.txt").write_bytes(f"{ODD}\r\n\r\nlast\n".encode())
    assert [(r["prompt"], r.place[1]) for r in read_prompts(tmp_path / "a.txt")] == [(ODD, 1), ("last", 3)]
    assert read_documents(tmp_path / "a.txt", "lines") == [ODD, "last"]
    (tmp_path / "mac.txt").write_bytes(b"one\rtwo\r\rthree")
    assert read_documents(tmp_path / "mac.txt", "paragraphs") == ["one\ntwo", "three"]
    (tmp_path / "a.jsonl").write_bytes('{"text": "one\u2028two\x85"}\r{"text": "b"}'.encode())
    assert [record["text"] for record in read_jsonl(tmp_path / "a.jsonl")] == ["one\u2028two\x85", "b"]


LINES = '{"text": "a", "prompt": "p"}\n\n{"prompt": "q", "text": "b"}\n'


NAMES = ["a.jsonl", "a.JSONL", "a.json", "a.ndjson", "a.jsonl.txt", "a.txt", "a", "a.jsonl.bak"]


@pytest.mark.parametrize("name", NAMES)
def test_jsonl_is_known_by_its_content_and_what_its_name_hides_is_said(name, tmp_path, capsys):
    path = tmp_path / name
    path.write_text(LINES, encoding="utf-8-sig")
    assert read_documents(path, "lines") == ["a", "b"] and [r["prompt"] for r in read_prompts(path)] == ["p", "q"]
    said = capsys.readouterr().out
    assert said == ("" if name == "a.jsonl" else f"{path}: read as JSONL, one object a line\n" * 2)


@pytest.mark.parametrize("text", ["{stage directions}\nTo be", "[1] A note.\n[2] Another.", "Code:\n{}\nand more",
                                  'He said {"a": 1}.\nNo.\nYes.', '"text": "a"'])
def test_plain_text_stays_plain(text, tmp_path, capsys):
    (tmp_path / "a.md").write_text(text)
    assert read_documents(tmp_path / "a.md") == [text] and "a.md: read as plain text" in capsys.readouterr().out
    assert not is_jsonl(tmp_path / "a.txt", text)
    (tmp_path / "a.txt").write_text(text)
    assert read_documents(tmp_path / "a.txt") == [text] and capsys.readouterr().out == ""


@pytest.mark.parametrize("text, message", [
    ('{"text": "a"\n', "line 1: not JSON"), ("{'text': 'a'}\n", "line 1: not JSON"),
    ('[\n{"text": "a"}\n]', "line 1: not JSON .*each line must be one object"),
    ('[{"text": "a"}]', "line 1: a list, not an object"), ('{\n  "text": "a"\n}', "line 1: not JSON"),
    ("# mine\n" + LINES, "line 1: not JSON"), ('{"body": "a"}', "line 1: field 'text' is missing"),
])
def test_a_fault_in_what_looks_like_jsonl_is_not_read_as_text(text, message, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    refused(tmp_path / "a.txt", message, read_documents)


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.json"])
def test_a_name_that_promises_jsonl_is_held_to_it(name, tmp_path):
    (tmp_path / name).write_text("To be, or not to be")
    refused(tmp_path / name, "line 1: not JSON", read_documents)
    refused(tmp_path / name, "line 1: not JSON", read_prompts)


def test_settings_may_begin_with_a_byte_order_mark(tmp_path, tokenizer):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "a": "ü"}', encoding="utf-8-sig")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json")["a"] == "ü" and architecture(tmp_path) == "gpt2"
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint() == tokenizer.fingerprint()
    assert read_tokenizer(tmp_path, SpecialIds()).encode("kite") == tokenizer.encode("kite")


def test_an_empty_text_is_a_text_since_comparisons_may_have_no_prompt(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"prompt": ""}\n')
    assert read_jsonl(path, ("prompt",)) == [{"prompt": ""}]


def test_fields_can_be_of_other_kinds_than_text(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"rating": 3}\n{"rating": 2.5}\n')
    assert [record["rating"] for record in read_jsonl(path, ("rating",), (int, float))] == [3, 2.5]
    path.write_text('{"rating": "3"}\n')
    with pytest.raises(UserError, match="field 'rating' is str") as error:
        read_jsonl(path, ("rating",), (int, float))
    assert "not text" not in str(error.value)


def test_paragraphs_of_a_file_from_windows_are_paragraphs(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree\r\n")
    assert read_documents(tmp_path / "text.txt", "paragraphs") == ["one\ntwo", "three"]


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5_000], ids=["deep", "long"])
def test_json_that_python_cannot_hold_is_an_error_in_words(text, tmp_path):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="nested too deeply, or a number too long"):
        read_json(tmp_path / "a.json")


def test_lines_that_were_written_are_read_back(tmp_path):
    records = [{"prompt": "naïve\n猫\u2028", "n": 1.5}, {"prompt": 'quote " and \\ slash', "n": None}]
    write_jsonl(tmp_path / "file.jsonl", records)
    assert read_jsonl(tmp_path / "file.jsonl", ("prompt",)) == records
    assert len((tmp_path / "file.jsonl").read_bytes().split(b"\n")) == 3


def test_a_folder_in_the_place_of_a_file_is_an_error_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (Path("."), tmp_path):
        with pytest.raises(UserError, match="choose another --out"):
            write_json(place, {})
    assert not list(tmp_path.iterdir())


def test_a_path_with_a_blank_is_told_in_quotes(capsys):
    say_how_to_sample(Path("base"), RunFolder(Path("my run")))
    say_how_to_sample(Path("my base"), TunedRun(Path("tuned")))
    assert [line.partition("sample ")[2] for line in capsys.readouterr().out.splitlines()] == [
        '"my run" --prompt "…"', '"my base" --tuned tuned --prompt "…"']


def test_fingerprints_depend_on_the_value_alone():
    assert fingerprint({"a": 1, "b": "猫"}) == fingerprint({"b": "猫", "a": 1}) and len(fingerprint([])) == 16
    assert len({fingerprint(value) for value in ([1], ["1"], [[1]], {"1": 1}, None, 1.0, 0.1)}) == 7
    assert fingerprint("x") == hashlib.sha256(b'"x"').hexdigest()[:16]


def test_about_the_asked_share_of_keys_is_held_out_always_the_same():
    keys = [f"story {i}" for i in range(4000)]
    kept = [held_out(key, 0.1) for key in keys]
    assert abs(sum(kept) - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9) and kept == [held_out(key, 0.1) for key in keys]
    assert not any(held_out(key, 0.0) for key in keys) and all(held_out(key, 1.0) for key in keys)
    assert all(held_out(key, 0.5) for key in keys if held_out(key, 0.1))


def test_equal_prompts_never_stand_on_both_sides_of_a_split():
    for i in range(200):
        assert len({held_out(key, 0.5) for key in (f"Story {i}", f" story  {i}\n", f"STORY\t{i}")}) == 1


def test_liked_and_disliked_completions_are_no_demonstrations(tmp_path):
    path = tmp_path / "kto.jsonl"
    path.write_text('{"prompt": "p", "completion": "c", "label": false}\n')
    refused(path, "line 1: label says whether the completion was liked, as in KTO", read_lines)
    refused(path, "line 1: label says whether", lambda path: refuse_judged(read_jsonl(path)[0]))
    path.write_text('{"prompt": "p", "completion": "c", "label": "mine"}\n')
    assert read_lines(path) == ([{"prompt": "p", "completion": "c", "label": "mine"}], False)
    path.write_text('{"text": "p", "label": "c"}\n{"text": "p"}')
    refused(path, "line 2: field 'label' is missing; the line has 'text'$", read_lines)


def test_a_remedy_that_the_command_lacks_is_left_out():
    with pytest.raises(UserError, match="give more text$"), given_context():
        pack([[1, 2, 3]], 5)
    with pytest.raises(UserError, match="give more text or a shorter --context$"):
        pack([[1, 2, 3]], 5)


# settings


def test_the_comment_behind_a_field_is_its_help():
    assert describe(Recipe) == {"flour": "grams", "sugar": "share of the flour; more is #sweeter",
                                "name": "what it is called"}
    assert describe(TrainingConfig)["clip"] == "longest gradient; 0 leaves it as it is"


def test_settings_survive_a_file():
    recipe = Recipe(flour=300, sugar=0.1 + 0.2)
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe
    assert from_dict(Recipe, {"flour": 1}) == Recipe(1)
    assert from_dict(TrainingConfig, to_dict(TrainingConfig(steps=7))) == TrainingConfig(steps=7)


def test_an_unknown_or_missing_setting_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError, match="a.json: unknown setting 'salt'; known are flour, sugar, name"):
        from_dict(Recipe, {"flour": 1, "salt": 2}, "a.json")
    with pytest.raises(UserError, match="setting 'flour' is missing"):
        from_dict(Recipe, {"sugar": 1.0})


@pytest.mark.parametrize("values", [{"flour": "1"}, {"flour": 1, "sugar": "much"}, {"flour": 1.5},
                                    {"flour": 1, "name": 3}, {"flour": None}, {"flour": True}])
def test_a_setting_of_another_type_is_an_error_that_names_it(values):
    with pytest.raises(UserError, match=list(values)[-1]):
        from_dict(Recipe, values)


def test_a_whole_number_will_do_for_a_setting_with_a_fraction():
    assert from_dict(Recipe, {"flour": 1, "sugar": 1}).sugar == 1


def test_an_error_names_its_place():
    assert str(UserError("is wrong")) == "is wrong"
    assert str(UserError("is wrong", "a.txt")) == "a.txt: is wrong"
    assert str(UserError("is wrong", "a.txt", 3)) == "a.txt, line 3: is wrong"


def test_the_fingerprint_of_records_is_that_of_earlier_versions_so_that_their_runs_go_on(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    before = [{"prompt": "a", "completion": "b", "line": 1}]  # where the line was a field
    assert fingerprint(read_jsonl(tmp_path / "a.jsonl")) == fingerprint(before)
