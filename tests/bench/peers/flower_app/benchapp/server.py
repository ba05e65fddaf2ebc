"""FedAvg that writes down when each round began and ended."""

import json
import os
import time

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    def configure_train(self, *args, **kwargs):
        self.events.append(["start", time.time()])
        return super().configure_train(*args, **kwargs)

    def aggregate_train(self, *args, **kwargs):
        made = super().aggregate_train(*args, **kwargs)
        self.events.append(["done", time.time()])
        return made


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    draw = np.random.default_rng(1)
    with open(str(config["sizes"])) as written:
        sizes = json.load(written)
    layers = [draw.standard_normal(size, dtype=np.float32) * np.float32(0.02) for size in sizes]
    clients = int(config["clients"])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.events = []
    rounds = int(config["rounds"])
    strategy.start(grid=grid, initial_arrays=ArrayRecord(layers), num_rounds=rounds, timeout=600)
    # Its appearance says that all is over: written beside, then renamed.
    with open(f"{config['out']}.part", "w") as out:
        json.dump(strategy.events, out)
    os.rename(f"{config['out']}.part", config["out"])
