"""A client that changes one number."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    arrays = [np.array(values) for values in msg.content["arrays"].to_numpy_ndarrays()]
    arrays[0].flat[0] += 1e-3
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 100})}
    return Message(content=RecordDict(content), reply_to=msg)
