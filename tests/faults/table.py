"""The tables of trust in docs/limits.md, from what the long forms of this folder have logged:

    for name in kills odd_machines fuzz mutants; do python tests/faults/$name.py --work runs/faults; done
    python tests/faults/table.py --work runs/faults --limits docs/limits.md
"""

import argparse
import json
import re
import sys
from pathlib import Path

HEAD, END = "<!-- trust: written by tests/faults/table.py -->", "<!-- end of trust -->"


def logged(work: Path, name: str) -> list[dict]:
    """The lines of a log; none where there is no such file."""
    file = work / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def stages(kills: list[dict], odd: list[dict]) -> list[str]:
    """Each stage: kills, and the faults of its disk and clock."""
    tried = {one["stage"]: one for one in odd}
    rows = ["| stage | kills at random moments | of the runs that went on, same bits | writes to a full disk | to a "
            "read-only one | wrong |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for stage in dict.fromkeys([*(r["stage"] for r in kills), *tried]):
        each = [r for r in kills if r["stage"] == stage]
        full, read_only, *_ = tried[stage]["tried"] if stage in tried else ("", "")
        wrong = sum(not r["same"] for r in each) + len(tried.get(stage, {"wrong": []})["wrong"])
        rows.append(f"| {stage} | {sum(r['kills'] for r in each)} | {sum(r['same'] for r in each)} of {len(each)} | "
                    f"{full} | {read_only} | {wrong} |")
    return rows


def fuzzed(lines: list[dict]) -> str:
    """One line about fuzzing."""
    runs = {engine: sum(one["runs"] for one in lines if one["engine"] == engine) for engine in ("random", "atheris")}
    readers = len({one["reader"] for one in lines})
    return (f"Fuzzing: {sum(runs.values()):,} executions on {readers} readers, {runs['atheris']:,} of them guided by "
            f"the code that was reached (atheris); {sum(one['finds'] for one in lines)} finds, each a test now.")


def mutants(lines: list[dict]) -> list[str]:
    """Each module: mutants that its tests noticed; then those that they did not."""
    rows = ["| module | places | mutants tried | noticed |", "| --- | ---: | ---: | ---: |"]
    for module in dict.fromkeys(one["module"] for one in lines):
        each = [one for one in lines if one["module"] == module]
        noticed = sum(one["verdict"] != "survived" for one in each)
        rows.append(f"| `{module}` | {each[0]['of']} | {len(each)} | {noticed} ({noticed / len(each):.0%}) |")
    left = [f"`{one['module']}`, line {one['line']}: `{one['now'].splitlines()[0][:60]}`" for one in lines
            if one["verdict"] == "survived"]
    return rows + ["", "Not noticed: " + ("; ".join(left) if left else "none") + "."]


def text(work: Path) -> str:
    """All of it, as Markdown."""
    lines = [HEAD, "", *stages(logged(work, "kills"), logged(work, "odd")), "", fuzzed(logged(work, "fuzz")), "",
             *mutants(logged(work, "mutants")), "", END]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    parser.add_argument("--limits", type=Path, help="write it between the marks of this file")
    args = parser.parse_args()
    found = text(args.work)
    if args.limits is None:
        print(found)
        return
    before = args.limits.read_text(encoding="utf-8")
    if HEAD not in before:
        sys.exit(f"{args.limits} has no line {HEAD}")
    pattern = re.compile(re.escape(HEAD) + ".*?" + re.escape(END), re.S)
    args.limits.write_text(pattern.sub(lambda _: found, before), encoding="utf-8")


if __name__ == "__main__":
    main()
