"""What tests of commands share: a command line as somebody types it, the one line of complaint, and two small files to
learn from."""

import json
import shlex

from minialign.__main__ import run


def type_in(line, d=None, **places):
    """Type a command line, {d} and other {names} filled in after it was cut into words, and return its exit status."""
    return run([word.format(d=d, **places) for word in shlex.split(line)])


def complaint(capsys):
    """The one error on standard error, without its "error: "."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def write_records(path, records):
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


def write_feelings(d):
    """demos.jsonl (prompt, completion) and labels.jsonl (text, label) of 60 lines each, whose rule is easy, and
    text.txt of the same words."""
    words = ["happy", "sad", "proud", "angry"]
    write_records(d / "demos.jsonl", [{"prompt": f"{words[i % 4]} {i}?", "completion": f" {'good' if i % 2 else 'bad'}"}
                                      for i in range(60)])
    write_records(d / "labels.jsonl", [{"text": f"{words[i % 4]} {i}", "label": ["bad", "good"][i % 2]}
                                       for i in range(60)])
    (d / "text.txt").write_text("happy sad proud angry good bad " * 60, encoding="utf-8")
