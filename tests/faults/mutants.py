"""Break the equations on purpose, one operator or number at a time, and see whether the plain tests notice.

    python tests/faults/mutants.py --count 20 --work runs/mutants      goes on where it was stopped; prints the table

A mutant exchanges + and -, * and /, < and <=, == and !=, `and` and `or`, min and max, True and False, takes a minus or
a `not` away, or adds one to a number. Messages, annotations, assertions and defaults (of fields, and configurations as
a whole) are left alone. The tests of a module are those that are named beside it; a mutant that they do not notice is
printed with its line.
"""

import argparse
import ast
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "tests")]
LIMIT = 240  # seconds of one mutant: a loop that never ends is noticed too
TESTS = {
    "logprobs": ("test_logprobs", "test_ranking", "test_rlhf", "test_dpo"),
    "evaluation": ("test_evaluation", "test_feedback_depth"),
    "rlhf.kl": ("test_rlhf", "test_dpo"),
    "rlhf.ppo": ("test_rlhf", "test_ppo_depth", "test_feedback_depth"),
    "rlhf.reward_model": ("test_rlhf", "test_feedback_depth", "test_ppo_depth"),
    "rlhf.dpo": ("test_dpo", "test_kto"),
    "rlhf.kto": ("test_kto",),
    "rlhf.grpo": ("test_grpo",),
    "peft.lora": ("test_peft", "test_peft_files", "test_dora", "test_logprobs"),
    "peft.dora": ("test_dora",),
    "quant.mappings": ("test_quant_mappings", "test_quant_layers", "test_quant_tables"),
    "quant.llm_int8": ("test_quant_layers", "test_outliers"),
    "quant.nf4": ("test_nf4",),
    "distill.soft_targets": ("test_distillation_losses", "test_distillation", "test_distil_layers",
                             "test_teacher_cache"),
    "pretrain.masked_lm": ("test_masked_lm", "test_gap_filling"),
    "pretrain.span_corruption": ("test_span_corruption", "test_gap_filling"),
    "pretrain.causal_lm": ("test_causal_lm", "test_training"),
    "instruct.sft": ("test_sft",),
    "instruct.zero_shot": ("test_instruct", "test_instruct_claims"),
}
EXCHANGED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
             ast.Mod: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
             ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.Pow: ast.Mult}
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "sum": "mean", "mean": "sum"}


def spots(tree: ast.Module) -> list[ast.AST]:
    """Nodes that a mutant may change."""
    found = []

    def visit(node):
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.AnnAssign | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Assign) and "Config(" in ast.unparse(node.value)[:24] and node in tree.body:
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):  # no decorator, no default
            for part in node.body:
                visit(part)
            return
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in EXCHANGED:
            found.append(node)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in EXCHANGED:
            found.append(node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            found.append(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            found.append(node)
        elif isinstance(node, ast.Attribute | ast.Name) and getattr(node, "attr", getattr(node, "id", "")) in NAMES:
            found.append(node)
        for inner in ast.iter_child_nodes(node):
            visit(inner)

    visit(tree)
    return found


def mutated(source: str, number: int) -> tuple[str, int, str]:
    """The source with its `number`-th spot changed, the line, and what stands there now."""
    tree = ast.parse(source)
    node = spots(tree)[number]
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        node.op = EXCHANGED[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = EXCHANGED[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Attribute):
        node.attr = NAMES[node.attr]
    else:
        node.id = NAMES[node.id]
    ast.fix_missing_locations(tree)
    return ast.unparse(tree), node.lineno, ast.unparse(node)


class Instead:
    """Lets one module be imported from another source."""

    def __init__(self, name: str, path: Path, source: str):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name, path=None, target=None):
        """The mutant under the module's name."""
        if name == self.name:
            return importlib.util.spec_from_loader(name, self, origin=str(self.path))
        return None

    def create_module(self, spec):
        """An ordinary module."""
        return None

    def exec_module(self, module):
        """Run the mutant; its lines are the original's for whoever reads the source."""
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)

    def get_source(self, name):
        """What configurations are described from: the original, comments and all."""
        return self.path.read_text(encoding="utf-8")


def verdict(module: str, source: str, said: Path) -> str:
    """"killed", "survived" or "endless" by the module's tests, in a process of its own."""
    path = ROOT / "minialign" / (module.replace(".", "/") + ".py")
    if pid := os.fork():
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            done, state = os.waitpid(pid, os.WNOHANG)
            if done:
                return "survived" if os.waitstatus_to_exitcode(state) == 0 else "killed"
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "endless"
    status = 99
    try:
        import pytest

        with open(said, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.meta_path.insert(0, Instead(f"minialign.{module}", path, source))
        tests = [str(ROOT / "tests" / f"{name}.py") for name in TESTS[module]]
        status = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(status)


def try_all(modules, count: int, seed: int, work: Path) -> list[dict]:
    """So many mutants of each module, or all where there are fewer; what was tried before is not tried again."""
    log, said = work / "mutants.jsonl", work / "said.txt"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for module in modules:
        source = (ROOT / "minialign" / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        if not any(one["module"] == module for one in known):
            assert verdict(module, source, said) == "survived", f"{module}: its own tests fail\n{said.read_text()}"
        numbers = [*range(len(spots(ast.parse(source))))]
        random.Random(f"{seed} {module}").shuffle(numbers)
        for number in numbers[:count]:
            if any((one["module"], one["number"]) == (module, number) for one in known):
                continue
            changed, line, text = mutated(source, number)
            one = {"module": module, "number": number, "line": line, "now": text, "of": len(numbers),
                   "verdict": verdict(module, changed, said)}
            known.append(one)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")
    return known


def table(known: list[dict]) -> str:
    """Markdown: mutants of each module, how many were noticed; then the others, each with its line."""
    rows = ["| module | places | tried | noticed |", "| --- | ---: | ---: | ---: |"]
    for module in dict.fromkeys(one["module"] for one in known):
        each = [one for one in known if one["module"] == module]
        noticed = sum(one["verdict"] != "survived" for one in each)
        rows.append(f"| `{module}` | {each[0]['of']} | {len(each)} | {noticed} ({noticed / len(each):.0%}) |")
    noticed = sum(one["verdict"] != "survived" for one in known)
    rows.append(f"| all | | {len(known)} | {noticed} ({noticed / max(1, len(known)):.0%}) |\n")
    rows += [f"survived: {one['module']}:{one['line']}  {one['now']}" for one in known if one["verdict"] == "survived"]
    return "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10**6, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=[*TESTS], choices=[*TESTS])
    parser.add_argument("--work", type=Path, default=Path("runs/mutants"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the tests take two threads, which spin where cores are busy
    import torch  # noqa: F401    once, not in every child

    print(table(try_all(args.modules, args.count, args.seed, args.work)))


if __name__ == "__main__":
    main()
