"""Same seed, same bytes: twice, in another folder, under another hash seed, locale and time zone; and nothing of it
needs the network.

The long form, every stage and two threads beside one: python tests/faults/test_determinism.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SHORT = ("pretrain", "sft", "reward", "ppo", "quantize")
PLAIN = {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"}
STRANGE = {"PYTHONHASHSEED": "4242", "LC_ALL": "tr_TR.UTF-8" if sys.platform == "linux" else "C",
           "TZ": "Asia/Kathmandu"}


def start(folder, environment, stages, threads=1):
    """A process that runs the stages in a folder; without a locale that the machine lacks."""
    env = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads)}
    probe = [sys.executable, "-c", "import locale; locale.setlocale(locale.LC_ALL, '')"]
    if subprocess.run(probe, env=env, capture_output=True).returncode:
        env["LC_ALL"] = "C.UTF-8"
    return subprocess.Popen([sys.executable, HERE / "in_another_place.py", folder, str(threads), *stages], env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(*processes):
    """What each process left, stage by stage."""
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), ended[0][1] + ended[-1][1]
    return [json.loads(said) for said, _ in ended]


def different(one, other):
    """(stage, file) of what two runs left, where they differ."""
    return [(stage, name) for stage in one for name in {**one[stage], **other[stage]}
            if one[stage].get(name) != other[stage].get(name)]


def test_the_same_seed_leaves_the_same_bytes_elsewhere_and_asks_no_network(tmp_path):
    # one after the other: each takes a core for itself
    (one,) = results(start(tmp_path / "a", PLAIN, SHORT))
    (other,) = results(start(tmp_path / "deeper" / "another name é", STRANGE, SHORT))
    assert all(any(name.endswith(".safetensors") for name in one[stage]) or stage == "finetune" for stage in one)
    assert different(one, other) == []


def long_form():
    """Every stage, beside a second run of the same and one with two threads."""
    from stages import STAGES

    stages = [stage for stage in STAGES if stage != "demo"]  # it starts processes
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (plain,) = results(start(place / "a", PLAIN, stages))
        for name, environment, threads in (("twice", PLAIN, 1), ("elsewhere", STRANGE, 1), ("two threads", PLAIN, 2)):
            (other,) = results(start(place / name, environment, stages, threads))
            apart = different(plain, other)
            print(f"{name}: {sum(map(len, plain.values()))} files, different: {apart or 'none'}")


if __name__ == "__main__":
    long_form()
