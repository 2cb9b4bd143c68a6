"""Templates of strangers stay within a budget: none runs or grows for ever, and usual ones do not notice it."""

import json
import time

import pytest

from minialign.lab.interchange.promptsource import read_promptsource
from minialign.runs.errors import UserError

DOUBLE = "{% set ns = namespace(x=%s) %}{% for i in range(60) %}{% set ns.x = %s %}{% endfor %}"
BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}" + "a long line " * 200 + "{% endfor %}",
    "{% for a in range(9)|map('string')|list recursive %}{{ loop(range(9)|list) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10 ** 10 }}", "{{ [1] * 10 ** 10 }}", "{{ 9 ** (9 ** 9) }}", "{{ text * n }}",
    "{{ 'a'|center(10000000000) }}", "{{ 'a'.ljust(10000000000) }}", "{{ text|indent(10000000000, true) }}",
    "{{ '%010000000000d' % 1 }}", "{{ '%*d' % (n, 1) }}", "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=n) }}", "{{ '%10000000000d'|format(1) }}", "{{ '{:{w}}'.format_map({'w': n}) }}",
    "{{ (text * 9000).replace('', text * 9000) }}", "{{ (['a'] * 90000)|join('b' * 90000) }}",
    "{% set x = text * 99999 %}{% for a in range(9999) %}{{ x }}{% endfor %}",
    DOUBLE.replace("%s", "'ab'", 1).replace("%s", "ns.x ~ ns.x"),
    DOUBLE.replace("%s", "'ab'", 1).replace("%s", "ns.x + ns.x"),
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "[ns.x, ns.x]") + "{{ ns.x }}",
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "[ns.x, ns.x]") + "{{ ns.x ~ '' }}",
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "[ns.x, ns.x]") + "{{ ns.x|string|length }}",
    DOUBLE.replace("%s", "[1]", 1).replace("%s", "[ns.x, ns.x]") + "{{ ns.x == [ns.x[0], [ns.x[0][0], 2]] }}",
    DOUBLE.replace("%s", "99", 1).replace("%s", "ns.x * ns.x") + "{{ ns.x }}",
    "{% set x = [1] %}{{ x.append(x) }}{{ x|tojson }}",
]  # fmt: skip


def one_template(folder, jinja):
    file = folder / "templates.yaml"
    entry = {"name": "n", "jinja": jinja + " ||| x", "metadata": {"original_task": True}}
    file.write_text(json.dumps({"templates": {"a": entry}}), encoding="utf-8")
    return read_promptsource(file, "t")[0][0]


@pytest.mark.parametrize("jinja", BOMBS)
def test_a_template_that_would_run_or_grow_for_ever_is_refused(tmp_path, jinja):
    started = time.process_time()
    with pytest.raises(UserError):
        one_template(tmp_path, jinja).pose({"text": "word " * 5, "n": 10**10})
    assert time.process_time() - started < 10


@pytest.mark.parametrize("jinja, expected", [
    ("{{ text|truncate(500) }}", None), ("{{ text.replace('word', 'sentence') }}", None),
    ("{{ text.split(' ')[:3]|join(', ') }}", "word, word, word"), ("{{ text|length ~ ' letters' }}", "14999 letters"),
    ("{% for w in text.split(' ') %}{{ loop.index }}{{ ',' if not loop.last }}{% endfor %}", None),
    ("{{ '%s and %.2f' % (label, 0.5) }}", "123456789 and 0.50"),
    ("{{ '{} {}'.format(label, text[:4]) }}{{ label|string }}", "123456789 word123456789"),
    ("{{ [5, label].index(label) }}{{ {label: 'b'}.get(label) }}{{ 'c' if label is eq(123456789) }}", "1bc"),
    ("{{ {'a': label}['a'] }} {{ [label, 2]|max }} {{ label > 5 and label != 7 }}", "123456789 123456789 True"),
    ("{{ (text.split(' ')|most_frequent)[0] ~ (1 if label else 2) }}", "word1"),
])  # fmt: skip
def test_usual_templates_of_long_examples_do_not_notice_the_budget(tmp_path, jinja, expected):
    text = " ".join(["word"] * 3000)
    found = one_template(tmp_path, jinja).pose({"text": text, "label": 123456789}).prompt
    assert found == expected if expected else len(found) > 300


def test_the_budget_is_each_filling_s_own(tmp_path):
    template = one_template(tmp_path, "{% for a in range(9999) %}{% set b = a %}{% endfor %}{{ text }}")
    assert {template.pose({"text": f"{i}"}).prompt for i in range(300)} == {str(i) for i in range(300)}


def test_yaml_that_names_a_list_twice_in_a_list_and_so_on_is_refused(tmp_path):
    lines = ["templates:", "  a: &a0 [x, x]"] + [f"  b{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    (tmp_path / "t.yaml").write_text("\n".join(lines))
    started = time.process_time()
    with pytest.raises(UserError, match="longer than any memory"):
        read_promptsource(tmp_path / "t.yaml", "t")
    assert time.process_time() - started < 10
