"""The README and docs/: every command in them parses, every file, test and notebook that they name is there, and what
scripts write is what they would write."""

import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_house import TEN_FILES

import minialign
from minialign.__main__ import CHAPTERS as MAP_OF_COMMANDS
from minialign.__main__ import COMMANDS, import_command
from minialign.lab.claims.page import MAP, NOTEBOOKS, between
from minialign.lab.claims.runner import CLAIMS
from minialign.lab.exercises.catalogue import exercises
from minialign.lab.plotting import as_png
from minialign.lab.report.picture import FURTHER, MARK, STATIONS, draw, drawn_from, whole_plan
from minialign.runs.errors import UserError

ROOT = Path(minialign.__file__).parents[1]
README = ROOT / "README.md"
PAGES = {path: path.read_text(encoding="utf-8") for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
COMMAND_PAGE, ERRATA = ROOT / "docs" / "commands.md", PAGES[ROOT / "docs" / "errata.md"]
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S)
TESTS = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
SPEED = importlib.util.spec_from_file_location("speed_commands", ROOT / "tests" / "speed" / "commands.py")


def commands_of(text):
    """Every `python -m minialign …` of a text: in blocks, with continued lines joined, and between backticks. Loops of
    the shell are taken apart."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)
    lines = [part for block in blocks for line in block.replace("\\\n", " ").splitlines()
             for part in re.split(r"&&|;|\bdo\b", line)]
    lines += re.findall(r"`([^`\n]+)`", text)
    found = (re.search(r"python -m minialign(?![.\w])(.*)", line) for line in lines)
    return [match.group(1).strip() for match in found if match]


def parse(line):
    """Let the command's own parser read a line, without running anything; raises click's error for what it does not
    know."""
    words = shlex.split(line)
    if not words or words[0].startswith("-"):
        words = ["demo", *words] if words != ["--help"] else ["demo"]
    if "--help" in words:
        words = words[:1] + ["--help"]
        return import_command(words[0])
    return import_command(words[0]).make_context(words[0], words[1:])


def spoken_commands():
    """The commands of the README, each once."""
    return sorted(set(commands_of(TEXT)) - {"COMMAND --help"})


@pytest.mark.parametrize("line", spoken_commands())
def test_every_command_of_the_readme_is_one_that_the_parser_takes(line):
    parse(line)


def test_the_reader_of_commands_finds_them_and_the_parser_refuses_what_is_not_there():
    loop = "for x in 1; do python -m minialign reward --base A \\\n  --comparisons B; done"
    text = f"a `python -m minialign ask RUN` b\n```\n{loop}\n```\n`python -m minialign.lab.report.picture`"
    assert commands_of(text) == ["reward --base A    --comparisons B", "ask RUN"]
    for wrong in ("reward --bass A --comparisons B", "ppo --updates many", "nothing"):
        with pytest.raises(Exception, match="bass|many|nothing|minialign.lab.commands"):
            parse(wrong)


def test_the_readme_shows_every_command():
    # demo is what runs without a name
    assert set(COMMANDS) - {line.split()[0] for line in spoken_commands() if line} - {"demo"} == set()


def test_every_link_of_the_readme_leads_somewhere():
    found = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#]+)\)", text)]
    assert len(found) > 60
    assert [(page.name, link) for page, link in found if not (page.parent / link).exists()] == []


def test_the_readme_is_read_in_one_go_and_its_pictures_are_described_in_one_line():
    assert len(README.read_bytes()) <= 12_000
    assert [text for text in re.findall(r"!\[([^\]]*)\]", TEXT) if not 20 < len(text) <= 120] == []


def test_the_ten_file_path_stands_in_the_readme_in_its_order():
    files = re.findall(r"^\| \[`([\w/]+\.py)`\]\(minialign/\1\) \| [^|]+ \| \[\d\d\]", PAGES[README], re.M)
    assert files[:10] == list(TEN_FILES)


def test_every_curve_that_a_symptom_names_is_one_that_some_run_writes():
    lines = PAGES[ROOT / "docs" / "symptoms.md"].splitlines()
    rows = [line.split("|")[1:-1] for line in lines if re.match(r"\| \d", line)]
    assert len(rows) >= 20 and all(len(row) == 6 and all(cell.strip() for cell in row) for row in rows)
    named = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row[2] + row[3] + row[5])}
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "minialign").rglob("*.py"))
    assert len(named) >= 12 and sorted(name for name in named if not re.search(rf"\b{name}\b", sources)) == []


def test_every_test_and_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) >= 8 and sorted(name for name in named if f"def {name}(" not in TESTS) == []
    files = {name for name in re.findall(r"`((?:minialign|tests|data|notebooks)/[\w/.-]+)`", PROSE) if "…" not in name}
    files |= {f"tests/parity/{name}" for name in re.findall(r"`(test_\w+\.py)`", PROSE)}
    assert len(files) > 5 and sorted(name for name in files if not (ROOT / name).exists()) == []


def test_every_line_of_python_in_the_readme_runs():
    lines = re.findall(r"`(from minialign[^`]+|import minialign[^`]*)`", TEXT)
    assert lines
    for line in lines:
        exec(line, {})  # noqa: S102


def errata():
    """E-number -> where it is checked, of the table of hard errors."""
    rows = re.findall(r"^\| (E\d+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", ERRATA, re.M)
    return dict(rows)


def test_every_hard_erratum_is_checked_where_the_readme_says():
    assert list(errata()) == [f"E{number}" for number in range(1, 13)]
    for name, where in errata().items():
        numbers, claims = re.findall(r"\b(\d\d)\b", where), re.findall(r"claim `([\w-]+)`", where)
        assert numbers or claims or "nothing to run" in where, name
        assert all(claim in CLAIMS for claim in claims)
        for number in numbers:
            path = ROOT / "notebooks" / f"{NOTEBOOKS[int(number)]}.ipynb"
            if path.exists():
                cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
                assert any("**Erratum" in "".join(cell["source"]) for cell in cells), (name, number)


def test_what_the_notes_only_leave_out_is_no_erratum():
    omitted = re.findall(r"^\| (E\d+) \| [^|]*omission", ERRATA, re.M)
    cells = json.loads((ROOT / "notebooks" / f"{NOTEBOOKS[5]}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cost,) = [part for cell in cells for part in "".join(cell["source"]).split("\n\n") if "alignment tax*" in part]
    assert omitted == ["E26"] and cost.startswith("**Omission.**")


def test_all_errata_are_listed_once():
    assert re.findall(r"^\| E(\d+) \|", ERRATA, re.M) == [str(number) for number in range(1, 38)]


def test_there_are_as_many_notebooks_and_exercises_as_the_readme_says():
    assert {12: "Twelve"}[len(NOTEBOOKS)] + " notebooks" in TEXT
    assert len(exercises()) > 60 and "more than sixty exercises" in TEXT


def test_the_two_main_commands_install_and_run_and_differ_in_their_ends_only():
    main, test = re.findall(r"^python3 -m venv .*$", TEXT, re.M)
    assert main.endswith("-m minialign") and test.endswith("-m pytest")
    assert main.removesuffix("minialign") == test.removesuffix("pytest")
    assert (ROOT / "requirements.txt").exists()


# the picture


def test_the_picture_of_the_readme_is_what_the_code_draws():
    with Image.open(ROOT / "data" / "pipeline.png") as committed:
        assert committed.text[MARK] == drawn_from(), "python -m minialign.lab.report.picture"
        with Image.open(io.BytesIO(as_png(draw(whole_plan()), dpi=130))) as fresh:
            assert fresh.size == committed.size
            pairs = zip(fresh.convert("L").resize((200, 90)).tobytes(), committed.convert("L").resize((200,
                90)).tobytes())
            # of 255; another machine may draw a letter a little differently
            assert sum(abs(a - b) for a, b in pairs) / (200 * 90) < 2


def test_every_box_of_the_picture_names_a_file_that_there_is_and_its_text_fits():
    fig = draw(whole_plan())
    renderer = fig._get_renderer() if hasattr(fig, "_get_renderer") else fig.canvas.get_renderer()
    assert [box.file for box in (*STATIONS.values(), *FURTHER) if not (ROOT / "minialign" / box.file).exists()] == []
    (axes,) = fig.axes
    frames = [patch.get_window_extent(renderer) for patch in axes.patches if hasattr(patch, "get_boxstyle")]
    for text in axes.texts:
        extent = text.get_window_extent(renderer)
        for frame in frames:
            if frame.contains(extent.x0, (extent.y0 + extent.y1) / 2):
                assert extent.x1 < frame.x1 - 2, text.get_text()


# the table of commands


@pytest.fixture(scope="module")
def speed():
    """tests/speed/commands.py as a module."""
    module = importlib.util.module_from_spec(SPEED)
    sys.modules["speed_commands"] = module
    SPEED.loader.exec_module(module)
    return module


def test_the_table_of_commands_is_made_of_those_that_the_script_runs(speed):
    table = between(PAGES[COMMAND_PAGE], "commands", COMMAND_PAGE)[1]
    rows = re.findall(r"^\| `(python -m minialign[^`]*)` \| ([\d.]+) \| ([\d,]+) \| (.+) \|$", table, re.M)
    assert [command for command, *_ in rows] == [line.command for line in speed.LINES]
    for command in speed.LINES:
        parse(command.command.removeprefix("python -m minialign"))


def test_the_script_writes_what_it_measured_between_the_markers(speed, tmp_path, monkeypatch, capsys):
    tiny = speed.Line("python -m minialign realdata python-reference", r"texts\.train\.txt: (\d+) (texts)",
                      "{0} of the {1} | found")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- commands -->\nold\n<!-- end of commands -->\nb\n", encoding="utf-8")
    monkeypatch.setattr(speed, "LINES", (tiny,))
    monkeypatch.setattr(sys, "argv", ["commands.py", "--readme", str(readme)])
    assert speed.main() == 0
    text = readme.read_text(encoding="utf-8")
    row = re.search(r"^\| `python -m minialign realdata python-reference` \| ([\d.]+) \| (\d+) \| (\d+) of the texts "
                    r"\\\| found \|$", text, re.M)
    assert row and float(row[1]) > 0 and 5 < int(row[2]) < 500 and int(row[3]) > 5
    assert "old" not in text and "s in all, on" in text and text.endswith("-->\nb\n")


def test_a_command_that_fails_or_says_something_else_writes_no_table(speed, tmp_path):
    with pytest.raises(UserError, match="failed: error: .*no data set"):
        speed.measure(speed.Line("python -m minialign realdata nonsense --out x", "(.*)"), tmp_path)
    with pytest.raises(UserError, match="printed nothing like"):
        speed.measure(speed.Line("python -m minialign --help", "there is no such (text)"), tmp_path)


# help, and what the shell completes


def test_the_map_of_commands_has_every_command_once_under_a_heading(capsys):
    assert sorted(name for names in MAP_OF_COMMANDS.values() for name in names) == sorted(COMMANDS)
    said = subprocess.run([sys.executable, "-m", "minialign", "--help"], cwd=ROOT, capture_output=True, text=True,
                          encoding="utf-8").stdout
    assert all(f"{heading}:" in said for heading in MAP_OF_COMMANDS) and all(re.search(rf"^  {name} +\w", said, re.M)
        for name in COMMANDS)


def shell(monkeypatch, capsys, **variables):
    """What the program prints when a shell asks it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        minialign.__main__.run([])
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "part"), [("zsh", "#compdef minialign"), ("fish",
    "complete --no-files --command minialign")])
def test_the_source_for_a_shell_s_completion_is_printed(monkeypatch, capsys, name, part):
    assert part in shell(monkeypatch, capsys, _MINIALIGN_COMPLETE=f"{name}_source")


def test_a_shell_completes_commands_and_options(monkeypatch, capsys):
    asked = {"_MINIALIGN_COMPLETE": "bash_complete"}
    assert shell(monkeypatch, capsys, COMP_WORDS="minialign fin", COMP_CWORD="1", **asked) == "plain,finetune\n"
    assert shell(monkeypatch, capsys, COMP_WORDS="minialign ppo --upd", COMP_CWORD="2", **asked) == "plain,--updates\n"
    assert shell(monkeypatch, capsys, COMP_WORDS="minialign nonsense --upd", COMP_CWORD="2", **asked).strip() == ""


def test_help_of_a_technique_begins_with_its_equation_and_its_paper():
    for files, _ in MAP.values():
        for path in files.split():
            if path.endswith(".py"):
                module = importlib.import_module("minialign." + path.removesuffix(".py").replace("/", "."))
                assert len(module.__doc__.strip().splitlines()[0]) > 20, path
    assert "Hu et al. 2021" in importlib.import_module("minialign.peft.lora").__doc__
