#!/usr/bin/env python3
"""Flower: a superlink and a supernode for each client, as processes of their own on loopback, TLS with the server's
certificate, `flwr run`. Prints one line of JSON. Wants a Python that has flwr, and openssl."""

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from peer_common import Memory, arguments, end, enter_own_network, loopback_bytes, sizes, tell

options = arguments()
counted = enter_own_network()
here = os.path.dirname(os.path.abspath(__file__))
work = tempfile.mkdtemp(prefix="rounds-flower-")
binaries = os.path.dirname(sys.executable)
out = f"{work}/rounds.json"
environment = dict(
    os.environ,
    FLWR_HOME=f"{work}/home",
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    PATH=f"{binaries}:{os.environ['PATH']}",
)

CERTIFICATES = """
set -e
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key -out ca.crt -days 2 \
    -subj /CN=rounds -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout server.key -out server.csr -subj /CN=localhost
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' > extensions
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile extensions
"""
os.makedirs(f"{work}/home")
shutil.copytree(f"{here}/flower_app", f"{work}/app")
subprocess.run(["sh", "-c", CERTIFICATES], cwd=work, check=True, capture_output=True)
with open(f"{work}/home/config.toml", "w") as config:
    config.write(
        '[superlink]\ndefault = "rounds"\n[superlink.rounds]\naddress = "127.0.0.1:8000"\n'
        f'root-certificates = "{work}/ca.crt"\n'
    )
with open(f"{work}/sizes.json", "w") as written:
    json.dump(sizes(options.params), written)
tls = ["--ssl-certfile", f"{work}/server.crt", "--ssl-keyfile", f"{work}/server.key", "--ssl-ca-certfile", f"{work}/ca.crt"]
started = time.time()
processes = []


def start(name, program, *words):
    log = open(f"{work}/{name}.log", "w")
    command = [f"{binaries}/{program}", *words]
    process = subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=subprocess.STDOUT)
    processes.append(process)
    return process


def listens():
    try:
        socket.create_connection(("127.0.0.1", 8000), 1).close()
        return True
    except OSError:
        return False


try:
    link = start("superlink", "flower-superlink", "--disable-runtime-dependency-installation", *tls)
    while not listens() and time.time() - started < 60:
        time.sleep(0.1)
    nodes = []
    for i in range(options.clients):
        words = ["--superlink", "127.0.0.1:8000", "--port", str(9100 + i), "--node-config", f"partition-id={i}"]
        nodes.append(start(f"node{i}", "flower-supernode", *words, "--root-certificates", f"{work}/ca.crt", *tls))
    memory = Memory(lambda: {"server": [[link.pid]], "client": [[node.pid] for node in nodes]})
    memory.start()
    before = loopback_bytes()
    settings = f'rounds={options.rounds} clients={options.clients} sizes="{work}/sizes.json" out="{out}"'
    run = start("run", "flwr", "run", f"{work}/app", "rounds", "--run-config", settings)
    while not os.path.exists(out) and time.time() - started < options.timeout:
        time.sleep(0.1)
        if run.poll() not in (None, 0) or any(process.poll() is not None for process in [link, *nodes]):
            break
    time.sleep(0.3)
    moved = loopback_bytes() - before
    memory.stopped = True
finally:
    end([process.pid for process in processes])
    for process in processes:
        process.wait()

if not os.path.exists(out):
    for name in ("superlink", "node0", "run"):
        with open(f"{work}/{name}.log") as log:
            print(f"--- {name}\n{log.read()[-3000:]}", file=sys.stderr)
    shutil.rmtree(work, ignore_errors=True)
    sys.exit("no result")
with open(out) as made:
    events = json.load(made)
shutil.rmtree(work, ignore_errors=True)
opened = [at for what, at in events if what == "start"]
done = [at for what, at in events if what == "done"]
times = [to - since for since, to in zip(opened, [*opened[1:], done[-1]])]
version = importlib.metadata.version("flwr")
tell(
    f"flower {version}",
    "gRPC, TLS",
    times,
    opened[0] - started,
    moved if counted else None,
    memory,
    options.rounds,
)
