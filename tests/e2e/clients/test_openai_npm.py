"""OpenAI's JavaScript client: chat, a stream, embeddings, responses, an error."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
if shutil.which("node") is None:
    pytest.skip("node is not installed", allow_module_level=True)
if not (FOLDER / "node_modules" / "openai").is_dir():
    pytest.skip("run `npm install openai` in tests/e2e/clients", allow_module_level=True)

SCRIPT = """
import OpenAI from 'openai';
const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'none', maxRetries: 0 });
const fields = { model, messages: [{ role: 'user', content: 'Hello' }], max_tokens: 12, temperature: 0 };
const whole = await client.chat.completions.create(fields);
let text = '';
for await (const chunk of await client.chat.completions.create({ ...fields, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? '';
const vectors = await client.embeddings.create({ model, input: ['Hello', 'world'] });
const asked = { model, input: 'Hello', max_output_tokens: 8 };
const response = await client.responses.create(asked);
const kinds = [];
for await (const event of await client.responses.create({ ...asked, stream: true }))
  kinds.push(event.type);
let status = 0;
try { await client.chat.completions.create({ ...fields, temperature: -1 }); }
catch (error) { status = error.status; }
console.log(JSON.stringify({ whole: whole.choices[0].message.content, text, vectors: vectors.data.length,
  output: response.output_text, last: kinds.at(-1), status }));
"""


def test_everything(url, model, tmp_path):
    script = FOLDER / "node_modules" / "octavo-test.mjs"  # modules are looked for beside the script
    script.write_text(SCRIPT)
    try:
        done = subprocess.run(["node", str(script), url, model], capture_output=True, text=True, timeout=120)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == found["whole"]
    assert (found["vectors"], found["status"]) == (2, 400)
    assert found["last"] in ("response.completed", "response.incomplete")
