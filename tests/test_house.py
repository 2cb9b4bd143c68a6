"""The house: the street is one-way, no file is too long, and what a docstring promises is there."""

import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

from minialign.runs.settings import describe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minialign"
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
TREES = {name: ast.parse(source, name) for name, source in SOURCES.items()}

FLOOR_0 = {"transformer", "heads", "tokenizer", "batching", "logprobs", "generation", "training", "evaluation",
           "cache", "ranking"}
FLOOR_0 |= {"classification"}
WORLD = {"world"}
TECHNIQUES = {"instruct", "rlhf", "peft", "quant", "distill"}
BOOK = FLOOR_0 | WORLD | TECHNIQUES | {"pretrain"}
RUNS = {"runs"}
LAB = {"lab", "__main__"}


def room(module):
    """The file or folder right below minialign/ that a module or a path is in: minialign.rlhf.ppo -> rlhf."""
    return re.split(r"[./]", module.removesuffix(".py"))[1]


def imported(tree, name):
    """Full names of all modules that a file imports anywhere in it, inside functions too."""
    package = name.removesuffix(".py").replace("/", ".").split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None,
                [node.module])]) if node.level else node.module
            yield base
            if base == "minialign":
                yield from (f"minialign.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            text = argument.values[0].value if isinstance(argument, ast.JoinedStr) else getattr(argument, "value", "")
            yield text.rstrip(".") if isinstance(text, str) else ""


IMPORTS = {name: set(imported(tree, name)) for name, tree in TREES.items()}
def room_of(module):
    """The room of a module of ours; None for somebody else's."""
    return room(module) if module.startswith("minialign.") else None


OWN = {name: {room(module) for module in modules if module.startswith("minialign.")} for name,
       modules in IMPORTS.items()}


def public(tree):
    """Functions and classes of a file that others may use."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")]


def configurations():
    """Every dataclass of the package whose name ends in Config."""
    found = []
    for name, tree in TREES.items():
        for node in public(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                found.append(getattr(importlib.import_module(name.removesuffix(".py").replace("/", ".")), node.name))
    return found


def test_every_room_is_on_a_floor_that_the_plan_names():
    assert {room(name) for name in FILES} - {"__init__"} == BOOK | RUNS | LAB


def test_the_reader_of_imports_finds_them_wherever_they_hide():
    source = "import a.b\ndef f():\n    from minialign.rlhf import ppo\n    from . import gae\n    from ..world import stories\n    import_module(f'minialign.peft.{f}')\n"  # noqa: E501
    found = set(imported(ast.parse(source), "minialign/rlhf/kl.py"))
    assert {"a.b", "minialign.rlhf", "minialign.world", "minialign.peft"} <= found


@pytest.mark.parametrize("name", [name for name in FILES if room(name) in FLOOR_0])
def test_floor_0_knows_nothing_of_the_notes(name):
    assert OWN[name] <= FLOOR_0 | RUNS


def test_runs_need_nothing_of_the_book():
    assert {name: OWN[name] for name in FILES if room(name) in RUNS and not OWN[name] <= RUNS} == {}


def test_the_world_needs_nothing_but_python_and_errors():
    for name in FILES:
        if room(name) in WORLD:
            assert {module for module in IMPORTS[name] if room_of(module) == "runs"} <= {"minialign.runs.errors"}, name
            assert OWN[name] <= WORLD | RUNS, name
            outside = {module.split(".")[0] for module in IMPORTS[name]} - {"minialign"}
            assert outside <= sys.stdlib_module_names, (name, outside)


def test_technique_folders_never_import_each_other():
    for name in FILES:
        if room(name) in TECHNIQUES:
            assert OWN[name] & TECHNIQUES <= {room(name)}, name


def test_the_book_never_imports_the_lab():
    assert {name: OWN[name] & LAB for name in FILES if room(name) in BOOK | RUNS and OWN[name] & LAB} == {}


def test_nothing_of_the_package_needs_the_exercises():
    for name in FILES:
        if not name.startswith("minialign/lab/exercises/"):
            assert not [module for module in IMPORTS[name] if module.startswith("minialign.lab.exercises")], name


def test_no_two_files_of_floor_0_need_each_other():
    below, needed = set(), {room(name): OWN[name] - {room(name)} - RUNS for name in FILES if room(name) in FLOOR_0}
    while needed:
        ready = {name for name, others in needed.items() if others <= below}
        assert ready, f"a circle among {sorted(needed)}"
        below |= ready
        needed = {name: others for name, others in needed.items() if name not in ready}


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_one_sitting(name):
    assert SOURCES[name].count("\n") <= 350


def test_files_are_named_with_nouns():
    assert not [name for name in FILES if Path(name).stem in ("utils", "util", "common", "helpers", "helper", "misc")]


def test_every_folder_of_the_package_is_one():
    folders = {path.parent for path in FILES.values()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


# what a docstring promises


def test_every_test_that_a_docstring_names_exists():
    written = {name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"^\s*def (test_\w+)\(",
        path.read_text(encoding="utf-8"), re.M)}
    promised = {(name, test) for name,
                source in SOURCES.items() for test in re.findall(r"\b(test_[a-z0-9_]+)\b(?!\.py)", source)}
    assert sorted((name, test) for name, test in promised if test not in written) == []


TEN_FILES = ("transformer.py", "generation.py", "training.py", "instruct/sft.py", "rlhf/reward_model.py", "rlhf/ppo.py",
             "peft/lora.py", "quant/mappings.py", "quant/llm_int8.py", "distill/soft_targets.py")


def following(name):
    """The file of the book that a file's docstring says to read next; None at the end of the book."""
    first = re.search(r"Read next:\s*`?(?:minialign/)?([\w/]+\.py)", ast.get_docstring(TREES[name]) or "")
    if first is None:
        return None
    beside = (Path(name).parent / first[1]).as_posix()
    return beside if beside in FILES else f"minialign/{first[1]}"


def test_read_next_is_one_way_through_the_whole_book():
    walked, here = [], "minialign/transformer.py"
    while here is not None and here not in walked:
        walked.append(here)
        here = following(here)
    assert here is None, f"a circle at {here}"
    assert set(walked) == {name for name in FILES if room(name) in BOOK and not name.endswith("__init__.py")}
    places = [walked.index(f"minialign/{name}") for name in TEN_FILES]
    assert places == sorted(places)


def test_the_ten_files_are_read_in_an_afternoon():
    assert sum(SOURCES[f"minialign/{name}"].count("\n") for name in TEN_FILES) <= 1_900
    assert SOURCES["minialign/rlhf/ppo.py"].count("\n") <= 320


def test_the_package_s_root_shows_the_course():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 22


def test_no_function_hides_a_second_one():
    long = [(name, node.name) for name, tree in TREES.items() for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60]
    assert long == []


def test_every_file_that_a_docstring_sends_the_reader_to_exists():
    missing = []
    for name, tree in TREES.items():
        for line in re.findall(r"Read next: (.*)", ast.get_docstring(tree) or ""):
            for file in re.findall(r"`?((?:minialign/)?[\w/]+\.py)`?", line):
                places = (PACKAGE / file, ROOT / file, FILES[name].parent / file)
                missing += [] if any(place.exists() for place in places) else [(name, file)]
    assert missing == []


@pytest.mark.parametrize("folder", sorted(TECHNIQUES | {"pretrain", "world", "lab/pretrained"}))
def test_a_technique_s_folder_maps_its_files_in_reading_order(folder):
    said = re.findall(r"\b(\w+\.py)\b", ast.get_docstring(TREES[f"minialign/{folder}/__init__.py"]))
    assert sorted(said) == sorted(path.name for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py")


def test_every_file_and_everything_public_says_what_it_is():
    silent = [name for name, tree in TREES.items() if ast.get_docstring(tree) is None and SOURCES[name].strip()]
    silent += [f"{name}: {node.name}" for name, tree in TREES.items() for node in public(tree)
               if ast.get_docstring(node) is None]
    assert silent == []


def test_no_docstring_has_lost_a_backslash():
    for name, tree in TREES.items():
        if name.startswith("minialign/lab/commands/"):
            continue  # a lone \b tells click to leave a paragraph as it is
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", ast.get_docstring(node, clean=False) or ""), name


# configurations


def test_there_are_configurations_to_look_at():
    assert {"TransformerConfig", "TrainingConfig", "SamplingConfig", "PPOConfig"} <= {config.__name__
        for config in configurations()}


@pytest.mark.parametrize("config", configurations(), ids=lambda config: config.__name__)
def test_a_configuration_is_frozen_short_and_explains_every_field(config):
    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
    help_of = describe(config)
    assert len(help_of) <= 20
    assert [name for name, text in help_of.items() if not text.strip()] == []


@pytest.mark.parametrize("config", configurations(), ids=lambda config: config.__name__)
def test_every_field_of_a_configuration_is_read_somewhere(config):
    read = {node.attr for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)}
    assert [field.name for field in dataclasses.fields(config) if field.name not in read] == []


# safety


def test_no_stranger_s_pickle_is_ever_opened():
    for name, tree in TREES.items():
        assert not {module.split(".")[0] for module in IMPORTS[name]} & {"pickle", "cPickle", "dill", "cloudpickle",
            "joblib", "shelve", "marshal"}, name
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"torch.load", "torch.save", "pickle.load", "pickle.loads", "eval", "exec"}, name
        assert "allow_pickle" not in SOURCES[name], name


# other systems


def calls():
    """(file, name of what is called, the call) of every call in the package."""
    for name, tree in TREES.items():
        yield from ((name, ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_text_files_are_opened_as_utf_8_whatever_the_system_s_own_letters_are():
    silent = []
    for name, function, call in calls():
        mode = next((a.value for a in call.args[1:2] if isinstance(a, ast.Constant)),
                    "r") if function == "open" else "r"
        ours = function in ("open", "fdopen") or (function.endswith((".read_text", ".write_text"))
                                                  and not function.startswith(("files(", "self.")))
        if ours and "b" not in mode and not any(keyword.arg == "encoding" for keyword in call.keywords):
            silent.append((name, ast.unparse(call)))
    assert silent == []


def test_nothing_needs_what_only_some_systems_have():
    missing_elsewhere = {"fcntl", "grp", "pwd", "pty", "termios", "tty", "curses", "syslog", "winreg", "msvcrt",
                         "_winapi"}
    for name in FILES:
        assert not {module.split(".")[0] for module in IMPORTS[name]} & missing_elsewhere, name
    optional = {name for name in FILES if "resource" in IMPORTS[name]}  # imported where it is used, in a try
    assert optional == {"minialign/evaluation.py"}
    forbidden = {"os.fork", "os.getuid", "os.geteuid", "os.uname", "os.sched_getaffinity", "os.mkfifo", "os.setsid",
                 "os.killpg", "signal.alarm"}
    assert [(name, function) for name, function, _ in calls() if function in forbidden] == []


def test_memory_is_not_known_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert importlib.import_module("minialign.evaluation").peak_memory_mib() is None


def test_other_processes_begin_anew_as_they_must_on_windows_and_macos():
    pools = [(name, ast.unparse(call)) for name, function, call in calls() if function.rsplit(".",
        1)[-1] in ("ProcessPoolExecutor", "Pool", "Process")]
    assert len(pools) >= 3
    assert [pool for pool in pools if "get_context('spawn')" not in pool[1]] == []


def test_no_path_is_put_together_or_taken_apart_by_hand():
    places = re.compile(r"/(?:tmp|dev|proc|usr|etc|var)/")
    for name, tree in TREES.items():
        documentation = {id(node.body[0].value) for node in ast.walk(tree)
                         if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
                         and isinstance(node.body[0], ast.Expr)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                assert not places.search(node.value), (name, node.value)


def test_no_file_knows_the_machine_that_it_was_written_on():
    place = re.compile(r"/(?:root|work|home/\w+|Users/\w+|tmp)/[\w.]|[A-Z]:\\Users")
    texts = [path for folder in ("minialign", "tests", "data", "notebooks") for path in (ROOT / folder).rglob("*")
             if path.is_file()]
    texts += [path for path in ROOT.iterdir() if path.is_file()]
    found = []
    for path in texts:
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json", ".jsonl", ".ipynb", ".yml",
                           ".cfg") and place.search(path.read_text(encoding="utf-8")):
            found.append(path.relative_to(ROOT).as_posix())
    assert found == []


def test_all_our_python_can_be_parsed():
    for path in [*ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), str(path))
