"""Makes the first model, saves each next one as NVFlare's own persistor does, and writes down when."""

import json
import os
import time

import numpy as np
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

from peer_common import sizes


class TimedPersistor(ModelPersistor):
    def __init__(self, params: int = 19_400_000, out: str = "events.jsonl"):
        super().__init__()
        self.params, self.out = params, out

    def note(self, what):
        with open(self.out, "a") as events:
            events.write(json.dumps([what, time.time()]) + "\n")

    def handle_event(self, event_type, fl_ctx):
        super().handle_event(event_type, fl_ctx)
        if event_type in ("_round_started", "_training_finished"):
            self.note(event_type)

    def load_model(self, fl_ctx):
        draw = np.random.default_rng(1)
        layers = {
            f"layer.{i:03}": draw.standard_normal(size, dtype=np.float32) * np.float32(0.02)
            for i, size in enumerate(sizes(self.params))
        }
        return make_model_learnable(layers, {})

    def save_model(self, ml, fl_ctx):
        path = os.path.join(os.path.dirname(self.out), "model.npz")
        np.savez(path, **ml[ModelLearnableKey.WEIGHTS])
        self.note("saved")
