"""The scripts for a machine with a graphics card, at the smallest size, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]


def run(script, *arguments):
    done = subprocess.run([sys.executable, "-W", "ignore", HERE / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_check_of_a_device_finds_the_cpu_right():
    *table, last = run("device/check.py", "--device", "cpu", "--fast")
    found = json.loads(last)
    assert found["device"] == "cpu" and not [name for name, (_, met) in found["rows"].items() if met is False]
    for name in ("llama, gradient, fp32", "ppo, second update", "grpo, second update", "int8 product 17×100×30"):
        assert found["rows"][name][1] is True
    assert found["rows"]["decoder, gradient, bf16"][0] > 0
    assert {"LoRA beside PEFT", "two processes with nccl", "eager: tokens a second"} <= set(found["rows"])
    assert len(table) >= 2 + len(found["rows"])


def test_the_check_of_a_device_can_fail():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c",
                           f"import sys; sys.path.insert(0, {str(HERE / 'device')!r}); import check, torch; "
                           "check.int8_matmul = lambda a, b: torch.zeros(len(a), len(b), dtype=torch.int32); "
                           "sys.exit(check.main(['--fast', '--device', 'cpu', '--only', 'int8']))"],
                          capture_output=True, text=True)
    assert done.returncode == 1 and "| missed |" in done.stdout


def test_the_script_of_how_it_grows(tmp_path):
    said = run("speed/scaling.py", "--sizes", ".1", "--contexts", "128", "--tokens", "8000", "--device", "cpu",
               "--draw", str(tmp_path / "grows.png"))
    first = json.loads(said[0])
    assert first["parameters"] > 90_000 and 3 < first["loss"] < 7 and first["tokens_per_second"] > 0
    assert said[-1].startswith("In ten minutes 0.1 million") and "| 128 |" in said[-3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grows-loss.png", "grows-speed.png"]


def test_a_notebook_computes_where_its_models_are():
    environment = os.environ | {"MINIALIGN_FAST": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", HERE / "machines" / "notebook_elsewhere.py",
                           "07_quantization.ipynb"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
