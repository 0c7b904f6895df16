"""Writes smollm2_greedy.json: Transformers' greedy float32 answers to 50 prompts of 1 to 1,500 tokens.

    python tests/data/make_smollm2_oracle.py

Each entry holds the prompt's token ids, 64 answered ids, and the log-probability of each answered token.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from octavo.loading.bundled import bundled_path

TEXTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a clockmaker who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "import json\n\nwith open('data.json') as file:\n    records = json.load(file)\n",
    "SELECT name, COUNT(*) FROM orders GROUP BY",
    "Water boils at 100 degrees Celsius at sea level because",
    "1, 1, 2, 3, 5, 8, 13,",
    "Die Katze sitzt auf dem Dach und",
    "La révolution française a commencé en",
    "El perro corre por el parque mientras",
    "人工知能とは、",
    "В начале было слово, и",
    "<html>\n<head><title>Home</title></head>\n<body>\n",
    "Q: What is photosynthesis?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "Ingredients:\n- 2 cups of flour\n- 1 egg\n",
    "🙂🚀 The emoji above mean",
    "    \t  indented text\n\n\nand blank lines",
    "E = mc^2 is the formula for",
    "To be, or not to be, that is the question:",
]
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about autumn.",
    "Explain gravity to a child.",
    "Translate 'good morning' into Spanish.",
    "List three primary colours.",
    "What is 17 + 25?",
    "Write a Python function that reverses a string.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
]


def prompts(tokenizer: AutoTokenizer) -> list[list[int]]:
    rng = random.Random(7)
    found = [[tokenizer.convert_tokens_to_ids("<|im_start|>")], tokenizer("Hi").input_ids]
    found += [tokenizer(text).input_ids for text in TEXTS]
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found.append(tokenizer(text, add_special_tokens=False).input_ids)
    pool = [token for ids in found[2:] for token in ids]
    for length in (15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 200, 256, 300, 400, 512, 700, 1000, 1500):
        ids: list[int] = []
        while len(ids) < length:
            ids += tokenizer(rng.choice(TEXTS) + rng.choice([" ", "\n", ". "])).input_ids
            ids += rng.sample(pool, 5)
        found.append(ids[:length])
    return found


@torch.inference_mode()
def main() -> None:
    path = Path(bundled_path("smollm2-135m-instruct"))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    entries = []
    for ids in prompts(tokenizer):
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=64,
            min_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0]
        scores = model(out[None]).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        answer = out[len(ids) :]
        logprobs = scores.gather(1, answer[:, None])[:, 0].tolist()
        entries.append({"prompt": ids, "answer": answer.tolist(), "logprobs": [round(x, 5) for x in logprobs]})
        print(len(entries), len(ids), flush=True)
    target = Path(__file__).with_name("smollm2_greedy.json")
    target.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


if __name__ == "__main__":
    main()
