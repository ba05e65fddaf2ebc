#!/usr/bin/env python3
"""NVFlare in its proof-of-concept mode: server and clients as processes of their own on loopback, with the mutual TLS that it
sets up by default, FedAvg. Prints one line of JSON. Wants a Python that has nvflare."""

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time

from peer_common import Memory, arguments, end, enter_own_network, loopback_bytes, named, tell

options = arguments()
counted = enter_own_network()
here = os.path.dirname(os.path.abspath(__file__))
os.chdir(here)
work = tempfile.mkdtemp(prefix="rounds-nvflare-")
binaries = os.path.dirname(sys.executable)
os.environ.update(
    NVFLARE_POC_WORKSPACE=f"{work}/poc", PATH=f"{binaries}:{os.environ['PATH']}", HOME=work, PYTHONPATH=here
)
events_file = f"{work}/events.jsonl"
# Whatever it prints is no result.
result, sys.stdout = sys.stdout, sys.stderr
started = time.time()

from nvflare.job_config.script_runner import FrameworkType
from nvflare.recipe.fedavg import FedAvgRecipe
from nvflare.recipe.poc_env import PocEnv

from nvflare_persistor import TimedPersistor

recipe = FedAvgRecipe(
    name="rounds",
    min_clients=options.clients,
    num_rounds=options.rounds,
    train_script="nvflare_client.py",
    framework=FrameworkType.RAW,
    launch_external_process=False,
    model_persistor=TimedPersistor(params=options.params, out=events_file),
)


def parties():
    clients = [named(work, f"/site-{i + 1}") for i in range(options.clients)]
    return {"server": [named(work, "/server")], "client": clients}


def events():
    if not os.path.exists(events_file):
        return []
    with open(events_file) as lines:
        return [json.loads(line) for line in lines]


memory = Memory(parties)
memory.start()
before = loopback_bytes()
try:
    recipe.execute(PocEnv(num_clients=options.clients))
    while time.time() - started < options.timeout:
        time.sleep(0.2)
        if sum(what == "saved" for what, _ in events()) >= options.rounds:
            break
    moved = loopback_bytes() - before
finally:
    memory.stopped = True
    end(named(work))

opened = [at for what, at in events() if what == "_round_started"]
saved = [at for what, at in events() if what == "saved"]
shutil.rmtree(work, ignore_errors=True)
sys.stdout = result
if len(saved) < options.rounds:
    sys.exit(f"{len(saved)} of {options.rounds} rounds within {options.timeout} s")
times = [to - since for since, to in zip(opened, [*opened[1:], saved[-1]])]
version = importlib.metadata.version("nvflare")
tell(
    f"nvflare {version}",
    "gRPC, mutual TLS",
    times,
    opened[0] - started,
    moved if counted else None,
    memory,
    options.rounds,
)
# Its threads do not end by themselves.
os._exit(0)
