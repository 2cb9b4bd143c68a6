"""Nothing of the package runs code from data, and only two places of it know the network: the labelling page, which
serves this computer, and `realdata`, which asks pip. Read in the source; tests/faults/test_determinism.py refuses the
network to whole runs."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minialign"
FILES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
TREES = {name: ast.parse(source, name) for name, source in FILES.items()}
NETWORK = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib", "smtplib",
           "telnetlib", "xmlrpc", "asyncio", "socketserver", "huggingface_hub", "transformers", "datasets", "flask",
           "werkzeug"}
PROGRAMS = {"subprocess", "pty", "commands"}
OTHERS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "codeop",
               "runpy", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv",
         "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load",
         "yaml.load_all", "np.fromregex"}


def roots(tree):
    """First names of all modules that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def users(modules):
    """Files that import any of some modules."""
    return {name for name, tree in TREES.items() if modules & set(roots(tree))}


def test_only_the_pages_a_free_port_of_this_computer_and_the_names_of_processes_know_the_network():
    assert users(NETWORK) == {"lab/labelling/page.py", "lab/play/serving.py", "lab/bases/make.py", "runs/processes.py"}
    assert "socket.create_server((LOCAL[0], port))" in FILES["lab/labelling/page.py"]
    assert "local_server(" in FILES["lab/play/serving.py"]
    assert set(re.findall(r"socket\.(\w+)", FILES["runs/processes.py"])) == {"gethostname"}
    assert 'LOCAL = ("127.0.0.1", "localhost")' in FILES["lab/labelling/page.py"]
    assert [line.strip() for line in FILES["lab/bases/make.py"].split("\n") if "bind(" in line] == [
        'free.bind(("127.0.0.1", 0))']


def test_other_programs_are_pip_which_downloads_and_ourselves():
    assert users(PROGRAMS) == {"lab/realdata/packages.py", "lab/bases/make.py"}
    started = [ast.unparse(node) for name in users(PROGRAMS) for node in ast.walk(TREES[name])
               if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess.")]
    assert started and not [call for call in started if "shell" in call]
    pip = next(line for line in FILES["lab/realdata/packages.py"].split("\n") if "download --no-deps" in line)
    assert "--no-input" in FILES["lab/realdata/packages.py"] and pip and "--require-hashes" in FILES[
        "lab/realdata/packages.py"]


def test_no_library_is_used_that_builds_objects_out_of_bytes():
    assert users(OTHERS_CODE) == set()


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_turns_text_into_code(name):
    called = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not called & CALLS
    assert "allow_pickle" not in FILES[name] and "weights_only=False" not in FILES[name]


def test_modules_are_loaded_by_names_of_ours_or_by_what_the_person_types():
    loaded = {name: [ast.unparse(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call)
                     and ast.unparse(node.func).endswith("import_module")] for name, tree in TREES.items()}
    theirs = {name: [what for what in found if not what.startswith(("f'minialign.", "'minialign."))]
              for name, found in loaded.items()}
    assert {name: what for name, what in theirs.items() if what} == {"lab/commands/grpo.py": ["module"]}  # --check


def test_yaml_is_read_safely_and_jinja_in_a_sandbox():
    yaml = [ast.unparse(node) for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Call)
            and ast.unparse(node.func).startswith("yaml.")]
    assert yaml == ["yaml.load(text, Loader=Loader)"]
    assert "class Loader(yaml.SafeLoader)" in FILES["lab/interchange/promptsource.py"]
    assert users({"jinja2"}) == {"lab/interchange/promptsource.py", "lab/interchange/jinja_limits.py"}
    assert "class LimitedEnvironment(SandboxedEnvironment)" in FILES["lab/interchange/jinja_limits.py"]
