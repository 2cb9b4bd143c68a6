"""A user's own tasks and templates, in our format and in PromptSource's."""

import json
from dataclasses import replace

import pytest

from minialign.instruct.mixture import MixtureConfig, draw
from minialign.instruct.t5 import prefix_templates
from minialign.lab.interchange.promptsource import most_frequent, read_promptsource
from minialign.lab.interchange.tasks_file import fill, read_tasks, read_templates
from minialign.runs.errors import UserError
from minialign.world.templates import Unfit

SPAM = {"task": "spam", "cluster": "mail", "text": "You have won!", "answer": "yes", "options": ["yes", "no"]}
YAML = """
dataset: toy
templates:
  aaa: !Template
    answer_choices: Yes ||| No
    id: aaa
    jinja: '{{premise}} Does it follow that {{hypothesis}}? ||| {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      original_task: true
    name: follows
    reference: ''
  bbb: !Template
    answer_choices: null
    jinja: 'Write something that follows from: {{premise}} ||| {% if label == 0 %}{{hypothesis}}{% endif %}'
    metadata: !TemplateMetadata
      original_task: false
    name: write
  ccc: !Template
    jinja: 'No separator {{premise}}'
    metadata: !TemplateMetadata
      original_task: true
    name: broken
  ddd: !Template
    jinja: '{{ premise ||| x'
    metadata: !TemplateMetadata {}
    name: unreadable
"""
EXAMPLE = {"premise": "Ida found the kite.", "hypothesis": "the kite was found", "label": 0}


@pytest.fixture
def files(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)) + "\n",
                        encoding="utf-8")
        return path

    return write


def test_a_cluster_is_text(files):
    with pytest.raises(UserError, match=r"line 1: cluster is \['mail'\]; it must be text"):
        read_tasks(files("tasks.jsonl", [SPAM | {"cluster": ["mail"]}]))


def test_tasks_are_read_with_file_line_and_cluster(files):
    path = files("tasks.jsonl", [SPAM, {"task": "echo", "text": "x", "answer": "x"}])
    tasks = read_tasks(path)
    assert tasks["spam"][0].place[1] == 1 and tasks["spam"][0]["cluster"] == "mail"
    assert tasks["echo"][0]["cluster"] == "echo"
    templates, unusable = read_templates(files("t.json", '{"spam": [{"name": "plain", "input": "{text}\\nSpam?"}], '
                                                         '"echo": "spam"}'), tasks)
    questions, skipped = fill(tasks, templates)
    assert [q.prompt for q in questions] == ["You have won!\nSpam?", "x\nSpam?"] and unusable == [] and skipped == 0
    assert questions[0].options == ("yes", "no") and questions[1].options == ()


@pytest.mark.parametrize(
    "record, message",
    [
        ({"cluster": "mail"}, "field 'task' is missing"),
        (SPAM | {"answer": True}, "the answer True is not among the options yes, no"),
        (SPAM | {"answer": ["yes"]}, r"the answer \['yes'\] is not among the options yes, no"),
        (SPAM | {"options": ["yes", None]}, "it must be a list of texts"),
        (SPAM | {"options": ["yes", True], "answer": "yes"}, "it must be a list of texts"),
        (SPAM | {"options": []}, "options has 0 answers"),
        (SPAM | {"options": ["yes"]}, "options has 1 answers"),
        (SPAM | {"options": "yes,no"}, "it must be a list of texts"),
        (SPAM | {"answer": "maybe"}, "the answer 'maybe' is not among the options yes, no"),
    ],
)
def test_a_bad_task_line_is_named_with_its_line(files, record, message):
    with pytest.raises(UserError, match=message) as error:
        read_tasks(files("tasks.jsonl", [SPAM, record]))
    assert "tasks.jsonl, line 2" in str(error.value)


@pytest.mark.parametrize("field, message", [("text", "needs the field 'text'"), ("answer", "needs the field 'answer'")])
def test_a_line_without_a_field_that_a_template_needs_is_named(files, field, message):
    line = {key: value for key, value in SPAM.items() if key not in (field, "options")}
    tasks = read_tasks(files("tasks.jsonl", [SPAM, line]))
    templates, _ = read_templates(files("t.json", '{"spam": [{"name": "plain", "input": "{text}?"}]}'), tasks)
    with pytest.raises(UserError, match=f"line 2: template spam/plain {message}"):
        fill(tasks, templates)


def test_an_option_of_no_word_is_an_error(files):
    tasks = read_tasks(files("tasks.jsonl", [SPAM | {"options": ["yes", " "]}]))
    templates, _ = read_templates(files("t.json", '{"spam": [{"name": "plain", "input": "{text}?"}]}'), tasks)
    with pytest.raises(UserError, match="line 1: .*no token to rank"):
        fill(tasks, templates)


def test_answers_and_options_lose_the_blanks_around_them_alike(files):
    tasks = read_tasks(files("tasks.jsonl", [SPAM | {"answer": " yes", "options": ["yes ", " no"]}]))
    table = '{"spam": [{"name": "plain", "input": "{text} {options}?", "words": {"yes": " true", "no": "false "}}]}'
    templates, _ = read_templates(files("t.json", table), tasks)
    ((question,), _) = fill(tasks, templates)
    assert (question.target, question.options) == ("true", ("true", "false"))


def test_a_field_of_one_s_own_may_be_called_line_or_file(files):
    path = files("tasks.jsonl", [SPAM | {"line": "To be", "file": "hamlet"}])
    tasks = read_tasks(path)
    table = '{"spam": [{"name": "plain", "input": "{line} {file}"}]}'
    templates, _ = read_templates(files("t.json", table), tasks)
    assert fill(tasks, templates)[0][0].prompt == "To be hamlet" and tasks["spam"][0].place == (path, 1)
    (jinja,), _ = read_promptsource(files("t.yaml", "templates: {a: {jinja: '{{line}} {{file}} ||| x'}}"), "spam")
    assert jinja.pose(tasks["spam"][0]).prompt == "To be hamlet"
    assert prefix_templates({"spam": [SPAM]})["spam"][0].input == "spam task: {task} text: {text}"
    assert prefix_templates(tasks)["spam"][0].input == "spam task: {task} text: {text} line: {line} file: {file}"


@pytest.mark.parametrize("name", ["t.yaml", "t.YAML", "t.yml", "t.yaml.txt", "t"])
def test_templates_in_yaml_are_known_by_their_content(files, name):
    tasks = read_tasks(files("tasks.jsonl", [{"task": "nli", **EXAMPLE}]))
    templates, unusable = read_templates(files(name, YAML), tasks)
    assert [t.name for t in templates["nli"]] == ["follows", "write"] and len(unusable) == 2


def test_templates_may_begin_with_a_byte_order_mark_and_hold_whole_characters(files):
    tasks = read_tasks(files("tasks.jsonl", [SPAM]))
    table = '{"spam": [{"name": "plain", "input": "{text} ü"}]}'
    assert read_templates(files("t.json", "\ufeff" + table), tasks)[0]["spam"][0].input == "{text} ü"
    with pytest.raises(UserError, match="t.json: field 'spam' holds half a character"):
        read_templates(files("t.json", table.replace("ü", "\\ud83d")), tasks)
    with pytest.raises(UserError, match="t.json, line 2: not JSON"):
        read_templates(files("t.json", '{"spam":\n[}'), tasks)
    with pytest.raises(UserError, match="t.yaml: field 'templates' holds half a character"):
        read_promptsource(files("t.yaml", 'templates: {a: {jinja: "\\ud83d ||| x"}}'), "spam")


def test_the_sign_between_prompt_and_target_may_stand_in_an_example_s_text(files):
    text = json.dumps({"templates": {"a": {"name": "n", "jinja": "{{text}}? ||| {{ answer_choices[label] }}",
                                           "answer_choices": "{{ names | join('|||') }}"}}})
    (template,), _ = read_promptsource(files("templates.yaml", text), "t")
    question = template.pose({"text": "a ||| b", "names": ["x|||y", "z"], "label": 0})
    assert (question.prompt, question.target) == ("a ||| b?", "x|||y")


def test_a_task_without_templates_is_an_error(files):
    tasks = read_tasks(files("tasks.jsonl", [SPAM]))
    with pytest.raises(UserError, match="the task 'spam' has no templates; there are some for ham"):
        read_templates(files("t.json", '{"ham": [{"name": "plain", "input": "{text}?"}]}'), tasks)


def test_a_promptsource_file_poses_questions_and_says_what_it_cannot_use(files):
    templates, unusable = read_promptsource(files("templates.yaml", YAML), "nli")
    assert [t.name for t in templates] == ["follows", "write"]
    assert [name for name, _ in unusable] == ["broken", "unreadable"]
    assert "no |||" in unusable[0][1] and "Jinja cannot read it" in unusable[1][1]
    first, second = (t.pose(EXAMPLE) for t in templates)
    assert first.prompt == "Ida found the kite. Does it follow that the kite was found?"
    assert first.target == "Yes" and first.options == ("Yes", "No")
    assert second.target == "the kite was found" and second.options == ()
    assert [t.asks_for_the_answer for t in templates] == [True, False]
    assert [t.inverted for t in templates] == [False, True]


def test_what_a_template_leaves_out_is_an_error_or_counted(files):
    path = files("tasks.jsonl", [{"task": "nli", **EXAMPLE}, {"task": "nli", **EXAMPLE, "label": 1}])
    tasks = read_tasks(path)
    templates, _ = read_templates(files("templates.yaml", YAML), tasks)
    with pytest.raises(UserError, match="line 2: .*--skip-unfit"):
        fill(tasks, templates)
    questions, skipped = fill(tasks, templates, skip_unfit=True)
    assert len(questions) == 3 and skipped == 1
    assert len(draw(tasks, templates, MixtureConfig(40, skip_unfit=True))) == 40
    with pytest.raises(Unfit):
        draw(tasks, templates, MixtureConfig(40))


@pytest.mark.parametrize(
    "text, message",
    [
        ("templates: [", "not valid YAML"),
        ("a: 1", "it has no `templates`"),
        ("templates: {a: {jinja: 'x'}}", "no template can be used: template 1: it has no"),
        ("templates: {a: !!python/object/apply:os.getcwd []}", "not valid YAML"),
    ],
)
def test_a_bad_yaml_file_is_named_with_its_fault(files, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_promptsource(files("templates.yaml", text), "x")
    assert "templates.yaml" in str(error.value)


@pytest.mark.parametrize(
    "jinja, example, message",
    [
        ("{{missing}} ||| y", {"a": 1}, "needs a field that the example lacks"),
        ("{{ ''.__class__.__mro__ }} ||| y", {"a": 1}, "cannot be filled|lacks"),
        ("{{ items[5] }} ||| y", {"items": [1]}, "no place for what a field"),
        ("{{ a + 'x' }} ||| y", {"a": 1}, "cannot be filled"),
        ("{{ a }} ||| other", {"a": 1}, "'other' is not among its choices"),
    ],
)
def test_a_template_that_cannot_be_filled_says_why_and_reaches_nothing(files, jinja, example, message):
    text = json.dumps({"templates": {"a": {"name": "n", "jinja": jinja, "answer_choices": "x ||| z",
                                           "metadata": {"original_task": True}}}})
    templates, _ = read_promptsource(files("templates.yaml", text), "t")
    with pytest.raises(UserError, match=message):
        templates[0].pose(example)


def test_the_helpers_of_the_collection_are_there(files):
    text = json.dumps({"templates": {"a": {"name": "n", "jinja": "{% for a, b in zip(p, q) %}{{a}}{{b}} {% endfor %} "
                                           "||| {{ p | most_frequent | choice }}"}}})
    templates, _ = read_promptsource(files("templates.yaml", text), "t")
    question = templates[0].pose({"p": ["x", "y", "y"], "q": [1, 2, 3]})
    assert question.prompt == "x1 y2 y3" and question.target == "y" and most_frequent([3, 1, 3, 1]) == [3, 1]


def test_a_yaml_file_is_for_one_task(files):
    tasks = read_tasks(files("tasks.jsonl", [SPAM, SPAM | {"task": "ham"}]))
    with pytest.raises(UserError, match="is for one task, and there are spam, ham"):
        read_templates(files("templates.yaml", YAML), tasks)


@pytest.mark.parametrize("value, text", [(7, "7"), (0, "0"), (2.5, "2.5"), ("7", "7")])
def test_a_number_is_its_text(files, value, text):
    line = {"task": "sum", "text": 3, "answer": value}
    tasks = read_tasks(files("tasks.jsonl", [line, line | {"options": [value, "8", 9]}]))
    templates, _ = read_templates(files("t.json", json.dumps({"sum": [
        {"name": "plain", "input": "{text} and what?"},
        {"name": "listed", "input": "{text}: {options}?", "words": {text: "that"}}]})), tasks)
    free, plain, listed = [template.pose(example) for example, template in (
        (tasks["sum"][0], templates["sum"][0]), *((tasks["sum"][1], template) for template in templates["sum"]))]
    assert (free.prompt, free.target, free.options) == ("3 and what?", text, ())
    assert plain.target == text and plain.options == (text, "8", "9") and plain.right == 0
    assert listed.prompt == "3: that, 8 or 9?" and listed.target == "that" and listed.right == 0


@pytest.mark.parametrize("field", ["answer", "text"])
@pytest.mark.parametrize("value, said", [(True, "true"), (["a"], '["a"]'), (None, "null"), ({"a": 1}, '{"a": 1}')])
def test_what_is_neither_text_nor_number_is_named_with_its_line(files, field, value, said):
    line = {"task": "sum", "text": "x", "answer": "y"}
    tasks = read_tasks(files("tasks.jsonl", [line, line | {field: value}]))
    templates, _ = read_templates(files("t.json", '{"sum": [{"name": "plain", "input": "{text}"}]}'), tasks)
    with pytest.raises(UserError) as error:
        fill(tasks, templates)
    assert f"tasks.jsonl, line 2: field {field!r} is {said}, and template sum/plain writes" in str(error.value)


def one_template(files, jinja, choices="x ||| y ||| z"):
    text = json.dumps({"templates": {"a": {"name": "n", "jinja": jinja, "answer_choices": choices,
                                           "metadata": {"original_task": True}}}})
    return read_promptsource(files("templates.yaml", text), "t")[0][0]


@pytest.mark.parametrize("jinja", ["a ||| {{ answer_choices[label] }}", "a ||| {{ ['x', 'y', 'z'][label] }}",
                                   "a ||| {% if true %}{{ answer_choices[label + 0] }}{% endif %}"])
def test_a_label_counts_from_the_first_choice_and_never_from_the_end(files, jinja):
    template = one_template(files, jinja)
    assert [template.pose({"label": i}).target for i in range(3)] == ["x", "y", "z"]
    for label, said in ((-1, "-1 is no place in a list"), (3, "has no element 3")):
        with pytest.raises(UserError, match=said):
            template.pose({"label": label})
    if "+" not in jinja:
        with pytest.raises(UserError, match="line 4: .*true is no place in a list"):
            template.pose({"label": True}, ("tasks.jsonl", 4))


def test_places_that_the_template_itself_counts_from_the_end_or_compares_are_its_own(files):
    template = one_template(files, "{{ text.split()[-1] }} {{ text[:-2] }} ||| {{ answer_choices[text == 'a b'] }}")
    assert template.pose({"text": "a b"}).target == "y" and template.pose({"text": "b cd"}).target == "x"
    assert template.pose({"text": "b cd"}).prompt == "cd b" and template.pose({"text": "a b"}).prompt == "b a"


def test_choices_may_be_a_list_as_older_files_have_them_and_nothing_else_but_text(files):
    assert one_template(files, "a ||| {{ answer_choices[1] }}", ["x", "y"]).pose({}).target == "y"
    with pytest.raises(UserError, match="no template can be used: n: its answer_choices are 3"):
        one_template(files, "a ||| b", 3)


def test_what_is_drawn_by_chance_is_drawn_by_the_example(files):
    template = one_template(files, "{{ ['p', 'q', 'r'] | choice }} {{ words | random }} ||| x", "x ||| y")
    examples = [{"words": ["s", "t"], "number": i} for i in range(60)]
    drawn = [template.pose(example).prompt for example in examples]
    assert len(set(drawn)) == 6 and drawn == [template.pose(example).prompt for example in examples]


def test_a_template_changes_no_example_and_reads_a_field_that_may_be_missing(files):
    template = one_template(files, "{% set w = words.pop() %}{{ w }}{% if hint %} {{ hint }}{% endif %} ||| x")
    example = {"words": ["s", "t"]}
    assert [template.pose(example).prompt for _ in range(2)] == ["t", "t"] and example == {"words": ["s", "t"]}
    assert template.pose(example | {"hint": "h"}).prompt == "t h"


@pytest.mark.parametrize("jinja, example, message", [
    ("{{ text }} ||| {{ answer_choices[label] }}", {"text": None, "label": 0}, "prints is null"),
    ("{{ text }} ||| {{ ['x', 'A'][label] }}", {"text": "a", "label": 1}, "'A' is not among its choices"),
    ("{{ text }} ||| {{ answer_choices[label] }}", {"text": "a", "label": 5}, "has no place for what a field"),
    ("{{ text }} ||| x", {"text": ""}, "a field that it prints is empty"),
])
def test_what_a_template_does_not_fit_is_left_out_on_request(files, jinja, example, message):
    template = one_template(files, jinja)
    with pytest.raises(UserError, match=message):
        fill({"t": [example]}, {"t": [template]})
    assert fill({"t": [example]}, {"t": [template]}, skip_unfit=True) == ([], 1)


def test_choices_that_are_equal_or_alone_are_nothing_to_choose_from(files):
    for choices in ("{{ a }} ||| {{ b }}", "{{ a }}"):
        template = one_template(files, "q ||| {{ a }}", choices)
        with pytest.raises(UserError, match="not two or more different ones"):
            template.pose({"a": "x", "b": "x"})


@pytest.mark.parametrize("text", [
    "templates: {a: {name: n, metadata: foo, jinja: 'a ||| b'}}", "templates: {a: {name: 2001-13-45}}",
    "templates: {a: {name: !!int x}}", "templates: " + "{a: " * 3000 + "}" * 3000, "templates: &a {x: *a}",
    "templates: {a: {name: n, jinja: 'a ||| b', metadata: {original_task: 'false'}}}"])
def test_a_file_that_is_wrong_in_an_odd_way_is_one_line(files, text):
    with pytest.raises(UserError):
        read_promptsource(files("templates.yaml", text), "t")


@pytest.mark.parametrize("jinja", ["{{ range(1000000) | list | length }} ||| x", "{{ (10 ** 400) * 1.5 }} ||| x",
                                   "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }} ||| x", "{{ lipsum(1) }} ||| x"])
def test_a_template_that_fails_in_an_odd_way_is_one_line(files, jinja):
    with pytest.raises(UserError):
        one_template(files, jinja).pose({"text": "a"})


def test_two_templates_of_one_name_are_two(files):
    text = "templates: {a: {name: n, jinja: 'a ||| x'}, b: {name: n, jinja: 'b ||| x'}}"
    found, _ = read_promptsource(files("templates.yaml", text), "t")
    assert [template.name for template in found] == ["n", "n (2)"]


def test_places_that_the_author_names_are_the_authors(files):
    jinja = "{% set last = -1 %}{{ text[last] }} ||| {{ answer_choices[0 if label else -1] }}"
    template = one_template(files, jinja)
    assert template.pose({"text": "ab", "label": 0}) == replace(template.pose({"text": "cb", "label": 0}))
    assert template.pose({"text": "ab", "label": 1}).target == "x" != template.pose({"text": "ab", "label": 0}).target


def test_a_folder_has_a_yaml_file_for_each_task_whose_fields_are_its_own(files, tmp_path):
    lines = [{"task": "math", "options": "a ) 5 , b ) 7", "answer": " b"}, {"task": "odd", "text": "x", "answer": "B"}]
    tasks = read_tasks(files("tasks.jsonl", lines), plain=False)
    (tmp_path / "odd").mkdir()
    files("math.yaml", "templates: {a: {name: n, jinja: '{{options}} ||| {{answer}}'}}")
    with pytest.raises(UserError, match="neither odd.yaml nor odd/templates.yaml"):
        read_templates(tmp_path, tasks)
    (tmp_path / "odd" / "templates.yaml").write_text("templates: {a: {name: n, jinja: '{{text}} ||| {{answer}}'}}")
    templates, _ = read_templates(tmp_path, tasks)
    assert [q.prompt for q in fill(tasks, templates)[0]] == ["a ) 5 , b ) 7", "x"]


def test_few_instructions_are_drawn_of_a_collections_templates_too(files):
    template = one_template(files, "{{ text }} ||| {{ answer_choices[label] }}")
    tasks = {"t": [{"text": f"a {i}", "label": i % 2, "cluster": "t"} for i in range(9)]}
    found = draw(tasks, {"t": [template, replace(template, name="o")]}, MixtureConfig(20, instructions=1, manners=True))
    assert len({question.template for question in found}) == 1
