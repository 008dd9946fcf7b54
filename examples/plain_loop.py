"""A standard fine-tuning loop made into DPO with two functions of Winnow: `completion_logps` and
`dpo_loss`.

    python examples/plain_loop.py --model MODEL_FOLDER --data PAIRS.jsonl

PAIRS.jsonl: one {"prompt": ..., "chosen": ..., "rejected": ...} per line. Everything else is plain
PyTorch.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from winnow import completion_logps, dpo_loss


def train(model, tokenizer, rows, *, steps, batch_size=4, lr=1e-6, beta=0.1):
    """DPO on `rows` in their order; the reference is the model as it comes in. Returns the
    losses.
    """
    model.eval()  # no dropout: log-probs must be the same twice
    with torch.no_grad():  # the reference as numbers, so there is no second model in memory
        reference = completion_logps(model, tokenizer, rows).view(-1, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        picked = [i % len(rows) for i in range(step * batch_size, (step + 1) * batch_size)]
        # chosen, rejected
        policy = completion_logps(model, tokenizer, [rows[i] for i in picked]).view(-1, 2)
        loss = dpo_loss(
            policy[:, 0], policy[:, 1], reference[picked, 0], reference[picked, 1], beta
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        print(f"step {step + 1}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    pairs = [json.loads(line) for line in asked.data.read_text().splitlines() if line.strip()]
    train(
        AutoModelForCausalLM.from_pretrained(asked.model),
        AutoTokenizer.from_pretrained(asked.model),
        pairs,
        steps=asked.steps,
    )
