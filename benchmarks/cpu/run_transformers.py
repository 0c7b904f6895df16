"""Measure Transformers' `generate`: a static batch, or one request after another in order of arrival.

python benchmarks/cpu/run_transformers.py batch64 batch1 --model HF_FOLDER
"""

from __future__ import annotations

import sys
import time

import runner
import torch
from engine import Answer, Setup
from transformers import AutoModelForCausalLM
from workloads import Workload


class Transformers:
    """The model in float32 on all cores. It has no cache across requests."""

    def __init__(self, folder: str) -> None:
        self.threads = runner.cores()
        torch.set_num_threads(self.threads)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None  # each answer has exactly max_tokens

    def run(self, workload: Workload) -> list[Answer]:
        if workload.arrivals is None:
            return [Answer(tokens) for tokens in self._generate(workload.prompts, workload.max_tokens)]
        return self._one_by_one(workload, workload.arrivals)

    def close(self) -> None:
        """Nothing outlives the object."""

    def _one_by_one(self, workload: Workload, arrivals: tuple[float, ...]) -> list[Answer]:
        answers = []
        start = time.perf_counter()
        for prompt, arrival in zip(workload.prompts, arrivals, strict=True):
            time.sleep(max(0.0, start + arrival - time.perf_counter()))
            (tokens,) = self._generate((prompt,), workload.max_tokens)
            answers.append(Answer(tokens, time.perf_counter() - start - arrival))
        return answers

    def _generate(self, prompts: tuple[tuple[int, ...], ...], max_tokens: int) -> list[int]:
        """The lengths of the answers to prompts of one length."""
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens
            )
        return [len(row) - ids.shape[1] for row in output]


def main() -> None:
    options = runner.parser(__doc__).parse_args()
    if "prefix_on" in options.workloads:
        sys.exit("Transformers' generate has no prefix cache across requests: leave prefix_on out.")

    def build(_: Setup) -> Transformers:
        return Transformers(options.model)

    runner.measure(build, "transformers", ("torch", "transformers"), options)


if __name__ == "__main__":
    main()
