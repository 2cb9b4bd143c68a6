"""The labelling page under kill -9 (the stages: kills.py, test_interruptions.py), and what a killed command must not
leave behind: processes that nobody ends."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import page
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
KILLED = '''
import os, sys, time
from minialign.runs.processes import two_workers

if __name__ == "__main__":
    with two_workers() as pool:
        print(*[job.result() for job in [pool.submit(os.getpid) for _ in range(8)]], flush=True)
        time.sleep(600)
'''


def test_a_page_that_is_killed_loses_no_label_and_counts_none_twice(tmp_path):
    found = [page.trial(number, 0, tmp_path) for number in range(2)]
    assert sum(one["kills"] for one in found) == 6 and all(one["same"] for one in found), found


def alive(pid):
    """Whether a process still works; one that waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED, encoding="utf-8")
    process = subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, text=True)
    workers = {int(pid) for pid in process.stdout.readline().split()}
    assert workers and all(map(alive, workers))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 20
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
