"""Trains an EAGLE head (arXiv 2401.15077) for SmolLM2-135M-Instruct, or another Llama, from its own answers.

    python benchmarks/gpu/distill_eagle.py MODEL_FOLDER OUTPUT_FOLDER [--minutes 4]

MODEL_FOLDER is a Hugging Face checkpoint (`benchmarks/cpu/export_smollm2.py` writes the bundled model as one). No
data set is needed: the model answers prompts made of topics and tasks, and questions that it asks itself. A third
of the time goes into that, the rest into training. The head is one decoder layer; it shares the model's embedding
and output layer, so that the file is small (8.5 MB for SmolLM2). Training looks three tokens ahead through the
head's own predictions, as it will be used. Prints how often it is right, by place, on answers kept apart.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

TASKS = (
    "Explain {} to a beginner.",
    "Write a short story about {}.",
    "What are the most important facts about {}?",
    "Give me a list of ten tips about {}.",
    "Write a polite email about {}.",
    "Compare two points of view on {}.",
    "Summarise what is known about {} in a few sentences.",
    "Write a poem about {}.",
    "How would you teach {} to children?",
    "Write a small Python function that has to do with {} and explain it.",
    "What is the history of {}?",
    "Why does {} matter? Answer step by step.",
    "Write a dialogue between two people who talk about {}.",
    "Rewrite this sentence in simpler words: 'The study of {} has changed considerably.'",
    "What questions should I ask an expert on {}?",
    "Make a plan for a week in which I learn about {}.",
)
TOPICS = (
    "rivers, bread, chess, the moon, volcanoes, gardening, bicycles, the Roman Empire, photosynthesis, jazz, "
    "databases, vaccines, sailing, honey bees, electric cars, democracy, fractions, coffee, dinosaurs, glaciers, "
    "painting, sorting algorithms, sleep, the human heart, trains, poetry, inflation, robots, football, languages, "
    "whales, bridges, cooking rice, the stock market, gravity, friendship, recycling, maps, medieval castles, "
    "computer networks, yoga, deserts, paper, mountains, migration, clocks, batteries, plastic, probability, soil, "
    "insurance, film music, ants, cities, teamwork, the internet, cheese, telescopes, running, proverbs, rain, "
    "fashion, negotiation, lighthouses, DNA, the French Revolution, web pages, birds, time zones, public speaking"
)
SELF_ASKED = 0.4  # of the prompts are begun only: the model asks the question itself
DEPTH = 3  # predictions ahead of each other in training
WEIGHTS = (1.0, 0.7, 0.5)


class EagleHead(nn.Module):
    """One Llama layer without its first norm, behind a layer that joins an embedding and a state."""

    def __init__(self, config: object) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.theta = config.rms_norm_eps, config.rope_parameters["rope_theta"]
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.q = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.v = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.o = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.norm = nn.Parameter(torch.ones(hidden))
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, embedded: Tensor, state: Tensor) -> Tensor:
        """[batch, length, hidden] each: the next token's embedding and this one's state, to the next state."""
        x = self.fc(torch.cat([embedded, state], dim=-1))
        x = x + self.o(self._attend(x))
        y = F.rms_norm(x.float(), (x.shape[-1],), self.norm.float(), self.eps).to(x.dtype)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(projected: Tensor, heads: int) -> Tensor:
            return projected.view(batch, length, heads, self.dim).transpose(1, 2)

        query, key = (self._turn(split(*part)) for part in ((self.q(x), self.heads), (self.k(x), self.kv_heads)))
        value = split(self.v(x), self.kv_heads)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(batch, length, -1)

    def _turn(self, x: Tensor) -> Tensor:
        half = self.dim // 2
        frequency = self.theta ** (-torch.arange(half, device=x.device) / half)
        angle = torch.arange(x.shape[2], device=x.device)[:, None] * frequency
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        left, right = x[..., :half], x[..., half:]
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def start_from(self, layer: nn.Module) -> None:
        """Begin with the state passed through, and the rest as the target's last layer, silent at first."""
        attention, mlp = layer.self_attn, layer.mlp
        pairs = {
            self.q: attention.q_proj, self.k: attention.k_proj, self.v: attention.v_proj, self.o: attention.o_proj,
            self.gate: mlp.gate_proj, self.up: mlp.up_proj, self.down: mlp.down_proj,
        }  # fmt: skip
        with torch.no_grad():
            for mine, theirs in pairs.items():
                mine.weight.copy_(theirs.weight)
            self.norm.copy_(layer.post_attention_layernorm.weight)
            for linear in (self.q, self.k, self.v):
                linear.weight *= 0.02 / linear.weight.std()
            self.o.weight.zero_()
            self.down.weight.zero_()
            hidden = self.fc.weight.shape[0]
            nn.init.normal_(self.fc.weight, std=0.01)
            self.fc.weight[:, hidden:] = torch.eye(hidden, device=self.fc.weight.device)

    def checkpoint(self) -> dict[str, Tensor]:
        """The tensors under EAGLE's names, in float16."""
        at = "layers.0."
        named = {
            "fc.weight": self.fc.weight,
            at + "post_attention_layernorm.weight": self.norm,
            **{f"{at}self_attn.{name}_proj.weight": getattr(self, name).weight for name in "qkvo"},
            **{f"{at}mlp.{name}_proj.weight": getattr(self, name).weight for name in ("gate", "up", "down")},
        }
        return {name: value.detach().to(torch.float16).contiguous().cpu() for name, value in named.items()}


def prompts(tokenizer: object, count: int, rng: random.Random) -> list[list[int]]:
    """Token ids of chats that wait for an answer, or for a question."""
    found, topics = [], TOPICS.split(", ")
    for _ in range(count):
        if rng.random() < SELF_ASKED:
            text = "<|im_start|>user\n" + rng.choice(("", "What ", "How ", "Write ", "Can you ", "I ", "Please "))
        else:
            task = rng.choice(TASKS).format(rng.choice(topics))
            chat = [{"role": "user", "content": task}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


@torch.inference_mode()
def answers(model: nn.Module, tokenizer: object, args: argparse.Namespace, deadline: float) -> list[list[int]]:
    """Whole chats, padding removed, until the time is up."""
    rng, found, device = random.Random(args.seed), [], model.device
    temperatures = (0.01, 0.7, 1.0)
    while time.time() < deadline or not found:
        batch = prompts(tokenizer, args.generate_batch, rng)
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), 0, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, width - len(prompt) :] = 1
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=args.length - width,
            do_sample=True,
            temperature=temperatures[len(found) // args.generate_batch % len(temperatures)],
            top_k=0,
            pad_token_id=tokenizer.eos_token_id,
        )
        found += [out[row, width - len(prompt) :].tolist() for row, prompt in enumerate(batch)]
    return found


def pack(chats: list[list[int]], length: int, device: torch.device) -> Tensor:
    """Chats one after another in rows of ``length``: int64 [rows, length]."""
    stream = [token for chat in chats for token in chat]
    rows = max(1, len(stream) // length)
    stream += stream[: max(0, length - len(stream))]
    return torch.tensor(stream[: rows * length], device=device).view(rows, length)


def losses(model: nn.Module, head: EagleHead, ids: Tensor) -> tuple[Tensor, list[float]]:
    """The loss of one batch [rows, length], and the share of tokens that are the target's at each depth."""
    with torch.no_grad():
        states = model.model(ids).last_hidden_state
        embedded = model.model.embed_tokens(ids)
        wanted = model.lm_head(states)
    total, right = states.new_zeros((), dtype=torch.float32), []
    carried = states[:, :-1]
    for depth, weight in enumerate(WEIGHTS[:DEPTH]):
        # Position t takes the state of t and token t + 1; it says what the state of t + 1 is.
        predicted = head(embedded[:, depth + 1 :], carried[:, : ids.shape[1] - 1 - depth])
        logits = model.lm_head(predicted)
        target, state = wanted[:, depth + 1 :], states[:, depth + 1 :]
        probability = target.float().softmax(-1)
        cross = -(probability * logits.float().log_softmax(-1)).sum(-1).mean()
        scale = state.float().std()
        distance = F.smooth_l1_loss(predicted.float() / scale, state.float() / scale)
        total = total + weight * (cross + 0.5 * distance)
        right.append((logits.argmax(-1) == target.argmax(-1)).float().mean().item())
        carried = predicted[:, :-1]
        embedded_left = embedded.shape[1] - depth - 2
        if embedded_left < 2:
            break
    return total, right


def train(model: nn.Module, head: EagleHead, data: Tensor, held: Tensor, args: argparse.Namespace, deadline: float):
    """Adam with a warm-up and a cosine over the time that is left."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.01)
    began, step = time.time(), 0
    while (now := time.time()) < deadline:
        part = (now - began) / (deadline - began)
        rate = args.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(data), (args.batch,), device=data.device)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=data.is_cuda):
            loss, right = losses(model, head, data[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 0.5)
        optimiser.step()
        if step % args.report == 0:
            places = " ".join(f"{value:.3f}" for value in right)
            print(f"step {step:5d}  {now - began:5.0f} s  loss {loss.item():.3f}  right {places}", flush=True)
        step += 1
    with torch.no_grad(), torch.autocast(data.device.type, torch.bfloat16, enabled=data.is_cuda):
        found = [losses(model, head, held[at : at + args.batch])[1] for at in range(0, len(held), args.batch)]
    places = [sum(row[i] for row in found) / len(found) for i in range(len(found[0]))]
    return step, places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--length", type=int, default=384, help="tokens of a chat and of a training row")
    parser.add_argument("--batch", type=int, default=32, help="rows of a training step")
    parser.add_argument("--generate-batch", type=int, default=768)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # chats go on with another question
    chats = answers(model, tokenizer, args, began + 20 * args.minutes)
    random.Random(1).shuffle(chats)
    held = pack(chats[: max(1, len(chats) // 50)], args.length, device)
    data = pack(chats[max(1, len(chats) // 50) :] or chats, args.length, device)
    print(f"{len(chats)} chats, {data.numel():,} tokens, after {time.time() - began:.0f} s", flush=True)
    head = EagleHead(model.config).to(device)
    head.start_from(model.model.layers[-1])
    steps, places = train(model, head, data, held, args, began + 60 * args.minutes)
    args.output.mkdir(parents=True, exist_ok=True)
    weights = head.checkpoint()
    save_file(weights, args.output / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {
        "architectures": ["EagleLlamaForCausalLM"], "num_hidden_layers": 1, "dtype": "float16"
    }  # fmt: skip
    (args.output / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    size = sum(value.nbytes for value in weights.values())
    result = {"steps": steps, "tokens": data.numel(), "seconds": round(time.time() - began), "bytes": size}
    print(json.dumps(result | {"right_ahead": [round(value, 4) for value in places]}))


if __name__ == "__main__":
    main()
