"""Run stages one after the other and print what each leaves as JSON, with every use of the network refused:

    python tests/faults/in_another_place.py FOLDER THREADS STAGE …

A process of its own, because a hook that audits cannot be taken back, and so that hash seed, locale, time zone and
place may be others.
"""

import json
import locale
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import torch  # noqa: E402
from stages import PREPARED, command, left, write_files  # noqa: E402

NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
           "urllib.Request", "http.client.connect", "subprocess.Popen", "os.system", "ftplib.connect")


def refuse(event, arguments):
    """End the process where something asks for the network, or for another program that might."""
    if event in NETWORK:
        print("refused", event, arguments, file=sys.stderr)
        sys.stderr.flush()
        raise SystemExit(f"{event} {arguments}")


def main(folder, threads, stages):
    """Stage -> file -> digest, on the standard output."""
    torch.set_num_threads(threads)
    locale.setlocale(locale.LC_ALL, "")
    time.tzset()
    random.seed(threads)  # whoever asks the global generator is found out
    torch.manual_seed(threads)
    folder.mkdir(parents=True)
    write_files(folder)
    sys.addaudithook(refuse)
    out, sys.stdout = sys.stdout, sys.stderr
    assert set(PREPARED) <= set(stages)
    found = {}
    for stage in stages:
        assert command(stage, folder, folder / stage) == 0, stage
        found[stage] = left(folder / stage)
    print(json.dumps(found), file=out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
