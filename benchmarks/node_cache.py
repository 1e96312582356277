"""Eight workers of one node that want the same parents at once: how often each is read, and how long it takes.

Writes random parents, starts the workers as processes of their own three times (an empty cache, a full one, a full one
after a reboot, which is pretended), and says how many copies were made and how long all workers took together. The
driver's digests are timed as well. Nothing stays behind.

    python benchmarks/node_cache.py --workers 8 --parents 3 --mib 256
"""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_WORKER = """
import pickle, sys
from pathlib import Path
from evomerge.checkpoints import node_cache
from evomerge.checkpoints.tickets import NodeParents
tickets, cache, boot = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), sys.argv[3]
if boot:
    node_cache.boot_id = lambda: boot
sys.stdin.readline()
parents = NodeParents(tickets, cache)
for name in parents:
    parents[name]
print(sum(note.startswith("copied") for note in parents.notes))
"""


def write_parents(folder: Path, n: int, mib: int) -> list[Path]:
    """Random llamas of about so many MiB of fp32 weights."""
    from evomerge.testing.tiny import tiny_checkpoint

    width = 1024
    layers = max(1, round(mib * 2**20 / 4 / (4 * width * width)))
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
    }
    found = [folder / str(i) for i in range(n)]
    shape |= {"num_key_value_heads": 8, "head_dim": 128}
    for i, path in enumerate(found):
        tiny_checkpoint(path, "llama", i, **shape)
    return found


def start(workers: int, tickets: Path, cache: Path, boot: str) -> dict[str, float]:
    """Start workers together; copies made, and seconds until the last one had its parents."""
    command = [sys.executable, "-c", _WORKER, str(tickets), str(cache), boot]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
    ]
    time.sleep(5)  # until all have imported what they need
    begun = time.perf_counter()
    for worker in running:
        if worker.stdin is not None:
            worker.stdin.write("\n")
            worker.stdin.flush()
    copies = sum(int(worker.communicate()[0]) for worker in running)
    return {"copies": copies, "seconds": round(time.perf_counter() - begun, 2)}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--parents", type=int, default=3)
    parser.add_argument("--mib", type=int, default=256)
    wanted = parser.parse_args()
    from evomerge.checkpoints.reader import open_checkpoint
    from evomerge.checkpoints.tickets import ticket_for

    home = Path(tempfile.mkdtemp(prefix="evomerge-node-cache-"))
    try:
        opened = {p.name: open_checkpoint(p) for p in write_parents(home / "shared", wanted.parents, wanted.mib)}
        begun = time.perf_counter()
        tickets = {name: ticket_for(parent) for name, parent in opened.items()}
        digests_s = time.perf_counter() - begun
        (home / "tickets").write_bytes(pickle.dumps(tickets))
        size = sum(p.stat().st_size for p in (home / "shared").rglob("*") if p.is_file())
        print(json.dumps({"workers": wanted.workers, "bytes": size, "driver_digests_s": round(digests_s, 2)}))
        for name, boot in (("empty", ""), ("full", ""), ("after a reboot", "another")):
            found = start(wanted.workers, home / "tickets", home / "ssd", boot)
            print(json.dumps({"cache": name, **found}), flush=True)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
