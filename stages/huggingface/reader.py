"""Program that reads an exported folder with Transformers: logits, ids of texts, and a generated text.

    python reader.py FOLDER WORK

It runs where nothing of Fairway is installed. WORK holds `asked.safetensors` with `ids` (B, T) and
`texts.json`; the answers are `logits.safetensors` with `logits` (B, T, V) and `answer.json`.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 8


def main() -> None:
    folder, work = sys.argv[1], Path(sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ids = load_file(work / "asked.safetensors")["ids"]
    with torch.no_grad():
        save_file({"logits": model(ids).logits.contiguous()}, work / "logits.safetensors")
    texts = json.loads((work / "texts.json").read_text(encoding="utf-8"))
    start = ids[:1, : max(1, ids.size(1) - NEW_TOKENS)]
    written = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    answer = {
        "transformers": transformers.__version__,
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "start": start.size(1),
        "written": written[0, start.size(1) :].tolist(),
    }
    (work / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
