"""Run by `flm export` in a process of its own: `logits_of.py MODEL_FOLDER TOKENS.npy LOGITS.npy`, logits in float32."""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

folder, tokens, logits = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).float().eval()
with torch.no_grad():
    found = model(torch.from_numpy(np.load(tokens)).long()).logits
np.save(logits, found.numpy())
