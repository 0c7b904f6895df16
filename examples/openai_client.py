"""Talk to `octavo serve` with OpenAI's own client (pip install openai).

octavo serve &
python examples/openai_client.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main(argv: Sequence[str] | None = None) -> None:
    """Ask once for the whole answer, and once for a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--question", default="What is the capital of France?")
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args(argv)
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": args.question}]
    with OpenAI(base_url=args.url, api_key="none") as client:
        model = client.models.list().data[0].id
        whole = client.chat.completions.create(model=model, messages=messages, max_tokens=args.max_tokens)
        print(f"{model}: {whole.choices[0].message.content}")
        for chunk in client.chat.completions.create(
            model=model, messages=messages, max_tokens=args.max_tokens, stream=True
        ):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
