"""A client that changes one number."""

import nvflare.client as flare

flare.init()
while flare.is_running():
    model = flare.receive()
    params = {name: values.copy() for name, values in model.params.items()}
    next(iter(params.values())).flat[0] += 1e-3
    meta = {"NUM_STEPS_CURRENT_ROUND": 100}
    flare.send(
        flare.FLModel(params=params, params_type=model.params_type, metrics={"accuracy": 0.5}, meta=meta)
    )
