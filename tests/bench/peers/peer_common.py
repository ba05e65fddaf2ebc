"""What both peers need: a network of their own, the memory of a party's processes, the sizes of a model."""

import argparse
import json
import os
import signal
import sys
import threading
import time


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", type=int, default=19_400_000)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=int, default=900, help="seconds")
    return parser.parse_args()


def sizes(params):
    """Many small tensors and a few large ones, as in tests/bench/rounds_bench/model.rs."""
    tensors = 170 if params > 40_000_000 else 117
    weights = [1.0 + 999.0 * ((i * 37) % tensors / tensors) ** 3 for i in range(tensors)]
    out = [max(16, int(params * weight / sum(weights))) for weight in weights]
    out[-1] += params - sum(out)
    return out


def enter_own_network():
    """Starts again in a network namespace with nothing but a loopback, whose bytes are then the peer's alone. For root;
    for others bytes are not counted."""
    if os.environ.get("PEER_NETWORK") == "own":
        return True
    if os.geteuid() != 0:
        return False
    os.environ["PEER_NETWORK"] = "own"
    script = 'ip link set lo up; exec "$@"'
    os.execvp("unshare", ["unshare", "-n", "--", "sh", "-c", script, "sh", sys.executable, *sys.argv])


def loopback_bytes():
    with open("/proc/net/dev") as devices:
        return next(int(line.split()[1]) for line in devices if line.strip().startswith("lo:"))


def parents():
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                found[int(name)] = int(stat.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass  # It has ended.
    return found


def below(roots):
    """These processes and all that they started."""
    children = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    found, todo = set(), list(roots)
    while todo:
        process = todo.pop()
        if process not in found:
            found.add(process)
            todo += children.get(process, [])
    return found


def named(*words):
    """Processes whose command line has all these words."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline") as line:
                text = line.read()
        except OSError:
            continue
        if all(word in text for word in words) and int(name) != os.getpid():
            found.append(int(name))
    return found


def resident_mb(process):
    try:
        with open(f"/proc/{process}/status") as status:
            return next((int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS:")), 0.0)
    except OSError:
        return 0.0


class Memory(threading.Thread):
    """Looks twenty times a second at the memory of each party, all its processes together; keeps the most of each role.

    `parties` gives, for each role, the process ids of each of its parties. Pages that processes share count in each."""

    def __init__(self, parties):
        super().__init__(daemon=True)
        self.parties, self.peak, self.stopped = parties, {"server": 0.0, "client": 0.0}, False

    def run(self):
        while not self.stopped:
            for role, parties in self.parties().items():
                for roots in parties:
                    resident = sum(map(resident_mb, below(roots)))
                    self.peak[role] = max(self.peak[role], resident)
            time.sleep(0.05)


def end(processes):
    """Ends these and all that they started."""
    everybody = below(processes)
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in everybody:
            try:
                os.kill(process, how)
            except OSError:
                pass
        time.sleep(1)


def tell(peer, lane, s_rounds, s_cold_start, moved, memory, rounds):
    print(
        json.dumps(
            {
                "peer": peer,
                "lane": lane,
                "s_rounds": s_rounds,
                "s_cold_start": s_cold_start,
                "bytes_per_round": None if moved is None else moved // rounds,
                "server_peak_mb": memory.peak["server"],
                "client_peak_mb": memory.peak["client"],
            }
        ),
        flush=True,
    )
