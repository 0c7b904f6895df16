"""Speculation on one GPU: a target that costs what an 8B model costs and says what SmolLM2 says.

    python benchmarks/gpu/spec_bench.py SMOLLM2_FOLDER [--eagle FOLDER] [--draft FOLDER] [--noise 0.05] [--out FILE]

SMOLLM2_FOLDER is the bundled model as a Hugging Face checkpoint (`benchmarks/cpu/export_smollm2.py`). The
target is its function-preserving widening (`widen.py`). `--eagle` names a head from `distill_eagle.py`, which
is widened as well; otherwise the draft is `--draft`, or SmolLM2 itself with noise of so many standard
deviations on its matrices, which sets the acceptance. Greedy answers of 160 tokens to chat prompts, at batch 1
and 64; prompts that are to be repeated for `ngram`. Loading is not timed. "predicted" is the best of (tokens a
step that the acceptance by place gives for k) over (a plain step + k times what a guess was measured to cost),
from a run with the longest drafts throughout.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams, hookimpl
from octavo.records import LoaderRecord

sys.path.insert(0, str(Path(__file__).parent))
from widen import Shape, Widened, WidenedLoader, widen_head

TINY = Shape(hidden=256, inner=512, layers=4, heads=16, kv_heads=4, head_dim=32)  # for a model of octavo.testing
QUESTIONS = (
    "Explain how rain forms.",
    "Write a short story about a lighthouse.",
    "List ten tips for learning chess.",
    "What is photosynthesis?",
    "Write a polite email that moves a meeting to Friday.",
    "Compare trains and cars for long journeys.",
    "How do vaccines work?",
    "Describe a market in a small town in spring.",
)
PASSAGE = """
The committee met on Tuesday to discuss the budget for the coming year. Members agreed that the library needs a new
roof before winter, and that repairs should begin in September. The treasurer reported that donations had risen by
twelve per cent, most of them from former pupils of the school. A proposal to extend the opening hours was put off
until the next meeting, as two members were absent. The chair thanked the volunteers for their work.
"""


class Bench:
    """Engines one after another, and what they measured."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.shape = TINY if args.tiny else Shape()
        self.widened = Widened(args.model, self.shape, device)
        self.target = folder / "target"
        shutil.copytree(args.model, self.target, ignore=shutil.ignore_patterns("*.safetensors"))
        (self.target / "config.json").write_text(json.dumps(self.widened.wide_config()))
        self.device, self.rows = device, []

    def plugin(self) -> Any:
        widened = self.widened

        class Plugin:
            @hookimpl
            def octavo_model_loaders(self) -> Any:
                yield LoaderRecord(
                    name="widened",
                    summary="Widens a narrow model.",
                    build=lambda ctx, options: WidenedLoader(widened),
                    automatic=False,
                )

        return Plugin()

    def engine(self, speculation: Any) -> LLM:
        return LLM(
            plugins=[self.plugin()],
            model={"path": str(self.target), "loader": "widened", "max_length": 2048},
            scheduler={"max_sequences": 256},
            cache={"blocks": 64 * 40},
            **({"speculation": speculation} if speculation else {}),
        )

    def draft(self) -> dict[str, Any]:
        """What guesses: an EAGLE head, or a model."""
        args = self.args
        if args.eagle:
            head = widen_head(args.eagle, self.folder / "eagle", self.shape, self.device)
            return {"use": "eagle", "options": {"model": str(head), "tokens": args.tokens}}
        path = args.draft or noisy(args.model, self.folder / "noisy", args.noise)
        return {"use": "draft-model", "options": {"model": str(path), "tokens": args.tokens}}

    def measure(self, llm: LLM, name: str, work: str, batch: int) -> dict[str, Any]:
        """Tokens a second of ``batch`` answers at once; a first, shorter round is not counted."""
        prompts = repeating(batch) if work == "repeat" else questions(batch)
        tokens = self.args.answer
        rounds = prompts[: 2 if self.args.tiny else None] if batch == 1 else [prompts]
        llm.generate(rounds[0], greedy(min(tokens, 48)))
        before, began = llm.stats(), time.perf_counter()
        for one in rounds:
            llm.generate(one, greedy(tokens))
        seconds, after = time.perf_counter() - began, llm.stats()
        made = after.generated_tokens - before.generated_tokens
        steps, drafts = after.steps - before.steps, after.drafts - before.drafts
        accepted = after.accepted - before.accepted
        drafted = after.drafted - before.drafted
        row = {
            "engine": name,
            "work": work,
            "batch": batch,
            "tokens_per_s": round(made / seconds, 1),
            "itl_ms": round(1e3 * seconds * batch / made, 3),
            "step_ms": round(1e3 * seconds / steps, 3),
            "drafted": drafted,
            "accepted": round(accepted / drafted, 3) if drafted else None,
            "length": round(1 + accepted / drafts, 2) if drafts else 1.0,
            "by_place": by_place(before.accepted_at, after.accepted_at, drafts),
            "off": after.speculation_off,
        }
        self.report(row)
        return row

    def report(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items() if value not in (None, "", [])), flush=True)
        if self.args.out:
            with self.args.out.open("a") as file:
                name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
                file.write(json.dumps({"bench": "speculation", "device": name} | row) + "\n")


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def questions(batch: int) -> list[str]:
    """Different chats: at batch 1 eight, one after another."""
    count = max(8, batch)
    chosen = [QUESTIONS[at % len(QUESTIONS)] + (" " + "Be brief." * (at // 8 % 3)) for at in range(count)]
    return [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in chosen]


def repeating(batch: int) -> list[str]:
    """Chats whose answers quote what was said; each with sentences in an order of its own."""
    rng, found = random.Random(0), []
    for _ in range(max(4, batch)):
        sentences = " ".join(PASSAGE.split()).split(". ")
        rng.shuffle(sentences)
        text = ". ".join(sentences)
        begun = " ".join(text.split()[:6])
        found.append(
            f"<|im_start|>user\nRepeat this text word for word: {text}<|im_end|>\n<|im_start|>assistant\n{begun}"
        )
    return found


def by_place(before: tuple[int, ...], after: tuple[int, ...], drafts: int) -> list[float]:
    start = (*before, *([0] * (len(after) - len(before))))
    return [round((b - a) / drafts, 3) for a, b in zip(start, after, strict=True)] if drafts else []


def noisy(model: Path, folder: Path, noise: float) -> Path:
    """A copy of a checkpoint with noise on its layers' matrices."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    save_file({name: weight.to(torch.bfloat16) for name, weight in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return folder


def predicted(plain: dict[str, Any], fixed: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The best speed-up that acceptance by place and the cost of a guess allow, and the length that gives it."""
    cost = max(0.0, (fixed["step_ms"] - plain["step_ms"]) / tokens)
    best, length, brought = 1.0, 0, 1.0
    for count, right in enumerate(fixed["by_place"], 1):
        brought += right
        speed = brought * plain["step_ms"] / (plain["step_ms"] + count * cost)
        if speed > best:
            best, length = speed, count
    return {
        "guess_cost": round(cost / plain["step_ms"], 3),
        "predicted": round(best, 2),
        "predicted_length": length,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--eagle", type=Path, help="head from distill_eagle.py")
    parser.add_argument("--draft", type=Path, help="draft model; default: a noisy SmolLM2")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--tokens", type=int, default=5, help="longest draft")
    parser.add_argument("--answer", type=int, default=160, help="tokens of an answer")
    parser.add_argument("--large", type=int, default=64, help="the larger batch")
    parser.add_argument("--tiny", action="store_true", help="a small target, to try this script with a tiny model")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        bench = Bench(args, Path(temporary))
        works = [("chat", 1), ("chat", args.large), ("repeat", 1)]
        with bench.engine(None) as llm:
            plain = {work: bench.measure(llm, "plain", *work) for work in works}
        draft = bench.draft()
        with bench.engine({**draft, "adapt": False}) as llm:
            fixed = bench.measure(llm, f"{draft['use']}, always {args.tokens}", "chat", 1)
        with bench.engine(draft) as llm:
            adapted = {work: bench.measure(llm, draft["use"], *work) for work in works[:2]}
        with bench.engine({"use": "ngram", "options": {"tokens": 7}}) as llm:
            adapted["repeat", 1] = bench.measure(llm, "ngram", "repeat", 1)
            bench.measure(llm, "ngram", "chat", args.large)
        for work, row in adapted.items():
            speedup = row["tokens_per_s"] / plain[work]["tokens_per_s"]
            result = {"summary": row["engine"], "work": work[0], "batch": work[1], "speedup": round(speedup, 2)}
            if work == ("chat", 1):
                result |= predicted(plain[work], fixed, args.tokens)
            bench.report(result)


if __name__ == "__main__":
    main()
