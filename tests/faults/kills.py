"""kill -9 at random moments of every stage: each restart goes on and ends with the bits of the run that was left alone.

    python tests/faults/kills.py --kills 100 --work runs/kills        goes on where it was stopped; prints the table

The moments are drawn from a seed, as a share of the time that the stage takes when it is left alone. One trial in three
is killed a second time, while it goes on. The labelling page is killed while labels are sent as fast as it takes them.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import page  # noqa: E402
import torch  # noqa: E402
from stages import STAGES, command, in_a_fork, left, prepare  # noqa: E402

# read once, not in every child
import minialign.lab.commands.claims  # noqa: E402
import minialign.lab.commands.demo  # noqa: E402
import minialign.lab.commands.distill  # noqa: E402
import minialign.lab.commands.dpo  # noqa: E402
import minialign.lab.commands.finetune  # noqa: E402
import minialign.lab.commands.grpo  # noqa: E402
import minialign.lab.commands.kto  # noqa: E402
import minialign.lab.commands.ppo  # noqa: E402
import minialign.lab.commands.pretrain  # noqa: E402
import minialign.lab.commands.quantize  # noqa: E402
import minialign.lab.commands.reward  # noqa: E402
import minialign.lab.commands.sft  # noqa: E402, F401
from minialign.runs.files import write_json  # noqa: E402
from minialign.training import adamw  # noqa: E402

PAGE = "labelling page"


def alone(stage: str, work: Path) -> tuple[float, dict[str, str]]:
    """Seconds of a stage that is left alone, and what it leaves; measured once."""
    kept = work / f"alone-{stage}.json"
    if not kept.exists():
        shutil.rmtree(work / "alone", ignore_errors=True)
        status, seconds = in_a_fork(lambda: command(stage, work / "d", work / "alone"), work / "said.txt")
        assert status == 0, (work / "said.txt").read_text()
        write_json(kept, [seconds, left(work / "alone")])
    seconds, found = json.loads(kept.read_text(encoding="utf-8"))
    return seconds, found


def trial(stage: str, number: int, seed: int, work: Path) -> dict:
    """One run that is killed once or twice and then left to end: what became of it."""
    seconds, expected = alone(stage, work)
    rng, out, kills = random.Random(f"{seed} {stage} {number}"), work / "out", 0
    shutil.rmtree(out, ignore_errors=True)
    for chance in (1.0, 1 / 3):
        if rng.random() < chance:
            moment = rng.uniform(0, seconds)
            status, _ = in_a_fork(lambda: command(stage, work / "d", out), work / "said.txt", moment)
            kills += status == -9
    status, _ = in_a_fork(lambda: command(stage, work / "d", out), work / "said.txt")
    said = (work / "said.txt").read_text(encoding="utf-8", errors="replace")
    done = status == 0 or (status == 2 and "choose another --out" in said)  # quantize: written whole before the kill
    found = left(out) if done else {}
    odd = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
    litter = [file.name for file in out.rglob("*.tmp")]
    return {"stage": stage, "number": number, "kills": kills, "status": status, "different": odd, "litter": litter,
            "same": done and not odd and not litter}


def results(work: Path) -> list[dict]:
    """What was tried so far; a line that a kill of this script cut short is left out."""
    file = work / "kills.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def kill_all(stages: list[str], kills: int, seed: int, work: Path) -> list[dict]:
    """Kill each stage until so many kills met it; returns all results."""
    prepare(work / "d")
    adamw(torch.nn.Linear(2, 2), 1e-3, 0.0).step()  # what torch reads at its first step
    for stage in stages:
        done = [r for r in results(work) if r["stage"] == stage]
        met, number = sum(r["kills"] for r in done), len(done)
        while met < kills and number < 4 * kills + 4:
            one = page.trial(number, seed, work) if stage == PAGE else trial(stage, number, seed, work)
            with open(work / "kills.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")
            met, number = met + one["kills"], number + 1
    return results(work)


def table(found: list[dict]) -> str:
    """Markdown: stage, kills that met it, runs that ended with the same bits."""
    lines = ["| stage | kills | restarted runs | ended with the same bits |", "| --- | ---: | ---: | ---: |"]
    for stage in dict.fromkeys(r["stage"] for r in found):
        each = [r for r in found if r["stage"] == stage]
        lines.append(f"| {stage} | {sum(r['kills'] for r in each)} | {len(each)} | {sum(r['same'] for r in each)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=[*STAGES, PAGE], choices=[*STAGES, PAGE])
    parser.add_argument("--work", type=Path, default=Path("runs/kills"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = kill_all(args.stages, args.kills, args.seed, args.work)
    print(table(found))
    sys.exit(any(not r["same"] for r in found))


if __name__ == "__main__":
    main()
