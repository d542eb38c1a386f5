"""A program that behaves like `vllm serve` where we rely on it, with a real model of transformers behind it.

It takes the options and the fields of the completions API that vLLM 0.32.0 documents, and no others, and refuses what
that version was seen to refuse: a missing key, another model's name, a temperature above 2, a sequence that is too long
and ids outside the vocabulary. Its noise is that of `generation.hf`, keyed by the request's seed.
"""

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = "0.32.0"
FIELDS = {
    *("model", "prompt", "seed", "max_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids"),
    "return_token_ids",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    return parser.parse_args()


class Refused(Exception):
    """Status and message."""


def complete(request, told, options, model, defaults):
    """A reply, as the completions API gives it."""
    from inverse_alignment.generation.hf import sample

    if told != f"Bearer {os.environ['VLLM_API_KEY']}":
        raise Refused(401, "Unauthorized")
    if unknown := set(request) - FIELDS:
        raise Refused(400, f"unknown fields {unknown}")
    if request["model"] != options.served_model_name:
        raise Refused(404, f"The model `{request['model']}` does not exist.")
    if not 0 <= request.get("temperature", 1.0) <= 2:
        raise Refused(400, "temperature must be in [0, 2]")
    if len(request["prompt"]) + request["max_tokens"] > options.max_model_len:
        raise Refused(400, "max_tokens cannot be greater than max_model_len")
    if max(request["prompt"]) >= model.config.vocab_size:
        raise Refused(400, f"Token id {max(request['prompt'])} is out of vocabulary")
    ends = [*request["stop_token_ids"]]
    if not request.get("ignore_eos"):
        ends += [model.config.eos_token_id, *defaults.get("eos_token_id", [])]
    time.sleep(request["seed"] % 3 * 0.02)  # whoever asked first is not always answered first
    free = (
        sample(
            model,
            [request["prompt"]],
            [request["seed"]],
            max_new_tokens=request["max_tokens"],
            temperature=max(request.get("temperature", defaults.get("temperature", 1.0)), 0.01),
            end_token=-1,
            pad_token=0,
        )
        .response_ids[0]
        .tolist()
    )
    end = next((place for place, token in enumerate(free) if token in ends), None)
    tokens = free if end is None else free[: end + 1]
    choice = {"index": 0, "text": "", "finish_reason": "length" if end is None else "stop"}
    if request.get("return_token_ids"):
        choice |= {"token_ids": tokens, "prompt_token_ids": request["prompt"]}
    return {"object": "text_completion", "model": request["model"], "choices": [choice]}


def main() -> None:
    import torch

    from inverse_alignment.models.loading import load_policy

    options = arguments()
    torch.set_num_threads(1)
    model = load_policy(options.folder, options.dtype).eval()
    defaults = {}
    if options.generation_config != "vllm":
        defaults = json.loads((options.folder / "generation_config.json").read_text())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"version": VERSION} if self.path == "/version" else {})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.reply(200, complete(request, self.headers["Authorization"], options, model, defaults))
            except Refused as refused:
                self.reply(refused.args[0], {"error": {"message": refused.args[1]}})

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # of five, as by default, a busy machine resets whoever comes sixth

    print("the model is loaded", flush=True)
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
