"""Ctrl-C and kill -9 while a command works: nothing is lost, and the same command ends with the bits of an undisturbed
run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_commands import PRETRAIN, d  # noqa: F401   the newcomer's folder is a fixture

from minialign import __main__ as entry
from minialign.runs.run_folder import RunFolder

INTERRUPTED = '''
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[3])
from test_commands import PPO, PRETRAIN, REWARD, T5, bits, type_in
from minialign.runs.run_folder import RunFolder
from minialign.training import adamw
# once, not in every child
import minialign.lab.commands.ppo, minialign.lab.commands.pretrain, minialign.lab.commands.reward

d, root = Path(sys.argv[1]), Path(sys.argv[2])
adamw(torch.nn.Linear(2, 2), 1e-3, 0.0).step()

def child(line, out, moment=None):
    """Run a command in a process of its own, which sends itself a signal at its n-th os.replace or line of the log."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    place, name, n, number = moment or (os, "replace", 10**9, 0)
    original, left = getattr(place, name), [n]
    def counted(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return original(*arguments)
    setattr(place, name, counted)
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(root / "stderr.txt", "w")
    status = type_in(f"{line} --out {out}", d=d)
    sys.stderr.flush()
    os._exit(status)

# at config.json, at the first checkpoint, at the finished model; where two stages are one, of either, in the second
once, twice = ((2, 4, 6), 3), ((4, 8, 11), 8)
stages = ("pretrain", PRETRAIN, once), ("reward", REWARD, once), ("ppo", PPO, once), ("t5", T5, twice)
for stage, line, (files, step) in stages:
    assert child(line, root / stage) == 0
    moments = [(os, "replace", n, signal.SIGKILL) for n in files]
    moments += [(RunFolder, "log", step, signal.SIGKILL), (RunFolder, "log", 2, signal.SIGINT)]
    for number, moment in enumerate(moments):
        out = root / f"{stage}-{number}"
        status, said = child(line, out, moment), (root / "stderr.txt").read_text().splitlines()[-1:]
        again = child(line, out)
        same = again == 0 and bits(out) == bits(root / stage) and not [f for f in out.rglob("*.tmp")]
        print(json.dumps([stage, moment[1], moment[2], status, said, same]))
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
def test_after_ctrl_c_or_kill_9_the_same_command_ends_with_the_same_bits(d, tmp_path):  # noqa: F811
    (tmp_path / "interrupted.py").write_text(INTERRUPTED, encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "interrupted.py", d, tmp_path, Path(__file__).parents[1]],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 20 and [report for report in reports if not report[-1]] == []
    assert {report[3] for report in reports} == {-signal.SIGKILL, 130}
    assert all("the same command goes on from there" in report[4][0] for report in reports if report[3] == 130)


def test_ctrl_c_at_the_keyboard_saves_says_how_to_go_on_and_ends_with_130(d, tmp_path):  # noqa: F811
    arguments = f"{PRETRAIN} --steps 100000 --out {tmp_path}/run".format(d=d).split()
    process = subprocess.Popen([sys.executable, "-m", "minialign", *arguments], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not RunFolder(tmp_path / "run").metrics():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped at step ")
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_ctrl_c_while_libraries_are_read_leaves_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: os.kill(os.getpid(), signal.SIGINT) or entry)
    monkeypatch.setattr(entry.os, "_exit", left.append)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(AttributeError):  # the stand-in for a command's module has no command
        entry.import_command("pretrain")
    assert left == [130] and signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_that_a_library_turns_into_an_error_of_its_own_is_still_ctrl_c(monkeypatch, tmp_path, capsys):
    def library(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr("minialign.lab.commands.sample.open_model", library)
    assert entry.run(["sample", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from what is saved\n"
