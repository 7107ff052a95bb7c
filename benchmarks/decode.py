"""How fast answers come, 8B-shaped with random weights: steps alone, transformers beside them, rounding, and whole commands.

steps: tokens per second of `finetuning.inference.slots` for some lengths of prompts and answers at once, beside the time in
which weights and cached keys and values are read once. peer: transformers' `generate` with the same weights. numerics: over
200 prompts, how often and where the greedy answer is another one than the plain way's, and how near the two tokens were; the
same for transformers against itself with half the batch. commands: `finetune generate` from the command to the first token,
and `finetune evaluate` of 2 000 Alpaca-like samples, answers of at most 256 tokens.

    python benchmarks/decode.py --work /tmp/decode --cases commands numerics steps peer --out decode.json
    python benchmarks/decode.py --work /tmp/small --cases commands --layers 2 --small    # to try the script
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from benchmarks.gpu import driver  # noqa: E402
from benchmarks.one_gpu import SHAPE_8B, SHAPE_SMALL, machine, make_data, make_model  # noqa: E402
from finetuning.config.llama import LlamaConfig  # noqa: E402
from finetuning.config.rope import RopeScaling  # noqa: E402
from finetuning.inference.generate import generate_answers  # noqa: E402
from finetuning.inference.plain import plain_answers  # noqa: E402
from finetuning.inference.slots import Occupant, Slots  # noqa: E402
from finetuning.model.attention import make_documents  # noqa: E402
from finetuning.model.llama import Llama  # noqa: E402
from finetuning.model.paged_cache import PagedCache, num_pages  # noqa: E402
from finetuning.model.sampling import Sampling  # noqa: E402

BYTES_PER_S = 4.3e12  # of a large copy on an H200
SIZES = [(prompt, batch) for prompt in (32, 4096) for batch in (1, 8, 32, 128)]
NEW_TOKENS, STEPS = 256, 60
PEER_SIZES, PEER_TOKENS = [(32, 1), (32, 8), (32, 32), (32, 128), (4096, 1), (4096, 8)], 16
NUMERIC_PROMPTS, NUMERIC_LENGTH, NUMERIC_TOKENS = 200, 32, 64
SAMPLES = 2000
COMMAND = (sys.executable, "-m", "finetuning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the model of `commands`: 17 GB")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layers", type=int, default=SHAPE_8B["num_hidden_layers"], help="fewer, to try the script")
    parser.add_argument("--small", action="store_true", help="narrow layers, to try the script")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine() | driver()}
    for case in arguments.cases:
        results[case] = CASES[case](arguments)
        print(f"{case}\n{json.dumps(results[case], indent=1)}", flush=True)
        torch.cuda.empty_cache()
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    net, found = random_net(arguments), []
    for prompt, batch in SIZES:
        found.append({"prompt": prompt, "batch": batch, **measure_steps(net, prompt, batch)})
        torch.cuda.empty_cache()
    return found


@torch.inference_mode()
def measure_steps(net: Llama, prompt: int, batch: int) -> dict[str, Any]:
    weight = net.model.embed_tokens.weight
    cache = PagedCache(net.config, batch * num_pages(prompt + NEW_TOKENS), weight.dtype, weight.device)
    with torch.inference_mode(False), torch.no_grad():
        slots = Slots(net, cache, Sampling(max_new_tokens=NEW_TOKENS), batch, prompt + NEW_TOKENS)
    first = torch.randint(0, net.config.vocab_size, (batch,), device=weight.device)
    slots.fill([Occupant(slot, slot, prompt, cache.take(prompt + NEW_TOKENS)) for slot in range(batch)], first)
    for _ in range(4):  # as it is, captured, replayed
        slots.step(batch).wait()
    began_s = time.perf_counter()
    for _ in range(STEPS):
        tokens = slots.step(batch)
    tokens.wait()
    step_s = (time.perf_counter() - began_s) / STEPS
    config = net.config
    tables = sum(p.numel() for name, p in net.named_parameters() if not name.endswith("embed_tokens.weight"))
    position_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    limit_s = (2 * tables + batch * (prompt + STEPS / 2) * position_bytes) / BYTES_PER_S
    slots.close()
    cache.layers.clear()
    return {"ms": round(step_s * 1e3, 3), "tokens_per_second": round(batch / step_s), "of_limit": round(limit_s / step_s, 3)}


def peer(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    net = random_net(arguments)
    model, found = their_model(net), []
    for prompt, batch in PEER_SIZES:
        tokens = torch.randint(0, net.config.vocab_size, (batch, prompt), device="cuda")
        their_answers(model, tokens, 2)
        seconds = []
        for count in (1, 1 + PEER_TOKENS):
            torch.cuda.synchronize()
            began_s = time.perf_counter()
            their_answers(model, tokens, count)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began_s)
        step_s = (seconds[1] - seconds[0]) / PEER_TOKENS
        found.append(
            {"prompt": prompt, "batch": batch, "ms": round(step_s * 1e3, 2), "tokens_per_second": round(batch / step_s)}
        )
    return found


def numerics(arguments: argparse.Namespace) -> dict[str, Any]:
    net = random_net(arguments)
    chance, sampling = random.Random(1), Sampling(max_new_tokens=NUMERIC_TOKENS)
    prompts = [[chance.randrange(net.config.vocab_size) for _ in range(NUMERIC_LENGTH)] for _ in range(NUMERIC_PROMPTS)]
    plain = plain_answers(net, prompts, sampling, (), NUMERIC_PROMPTS)
    engine = generate_answers(net, prompts, sampling, ())
    few = generate_answers(net, prompts, sampling, (), batch_size=NUMERIC_PROMPTS // 4)
    model, tokens = their_model(net), torch.tensor(prompts, device="cuda")
    whole = their_answers(model, tokens, NUMERIC_TOKENS)
    halves = [answer for half in tokens.chunk(2) for answer in their_answers(model, half, NUMERIC_TOKENS)]
    half_plain = plain_answers(net, prompts, sampling, (), NUMERIC_PROMPTS // 2)
    return {
        "engine against the plain way": differences(net, prompts, engine, plain),
        "engine against itself with a quarter of the batch": differences(net, prompts, engine, few),
        "plain way against itself with half the batch": differences(net, prompts, plain, half_plain),
        "transformers against itself with half the batch": differences(net, prompts, whole, halves),
        "engine against transformers": differences(net, prompts, engine, whole),
    }


@torch.inference_mode()
def differences(net: Llama, prompts: list[list[int]], one: list[list[int]], other: list[list[int]]) -> dict[str, Any]:
    """First tokens that differ, and how far apart the logarithms of their probabilities are after what was equal before."""
    firsts, gaps = [], []
    for prompt, a, b in zip(prompts, one, other, strict=True):
        place = next((place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        if place is None:
            continue
        tokens = torch.tensor([prompt + a[:place]], device="cuda")
        positions = torch.arange(tokens.shape[1], device="cuda")
        documents = make_documents([tokens.shape[1]]).to(tokens.device)
        logits_V = net(tokens, positions[None], documents, at_S=positions[-1:])[0, 0]
        log_probability_V = F.log_softmax(logits_V.float(), -1)
        firsts.append(place)
        gaps.append(abs(float(log_probability_V[a[place]] - log_probability_V[b[place]])))
    if not firsts:
        return {"other answers": 0}
    return {
        "other answers": len(firsts),
        "median first token": statistics.median(firsts),
        "median gap": round(statistics.median(gaps), 4),
        "largest gap": round(max(gaps), 4),
    }


def commands(arguments: argparse.Namespace) -> dict[str, Any]:
    model = arguments.work / f"llama-{arguments.layers}{'-small' * arguments.small}"
    if not model.is_dir():
        arguments.work.mkdir(parents=True, exist_ok=True)
        make_model(model, arguments.layers, SHAPE_SMALL if arguments.small else SHAPE_8B)
        speak_known_tokens(model)
        torch.cuda.empty_cache()
    data = arguments.work / "data"
    if not data.is_dir():
        make_data(data, model, "alpaca")
    found: dict[str, Any] = {}
    for name in ("first, kernels to compile", "second"):
        found[f"generate, {name}"] = first_token([str(model), "one two three", "--max_new_tokens", "200"])
    began_s = time.perf_counter()
    out = arguments.work / "evaluation"
    flags = [str(model), str(data / "training.jsonl"), "--limit", str(20 if arguments.small else SAMPLES), "--out", str(out)]
    subprocess.run([*COMMAND, "evaluate", *flags], cwd=ROOT, check=True)
    found["evaluate_s"] = round(time.perf_counter() - began_s, 1)
    found["characters"] = sum(
        len(json.loads(line)["prediction"]) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    )
    return found


def speak_known_tokens(model: Path) -> None:
    """Lets the head prefer tokens that the small tokenizer knows: the others would be no text."""
    from safetensors.torch import load_file, save_file

    from finetuning.data.prompts.tokenizer import open_tokenizer

    weight_map = json.loads((model / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    file = str(model / weight_map["lm_head.weight"])
    tensors = load_file(file)
    tensors["lm_head.weight"][open_tokenizer(model / "tokenizer.json").get_vocab_size() :] = 0
    save_file(tensors, file, metadata={"format": "pt"})


def first_token(flags: list[str]) -> dict[str, float]:
    """Seconds from the command to the first text of the answer, and to the end."""
    began_s = time.perf_counter()
    with subprocess.Popen([*COMMAND, "generate", *flags], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        first_s = time.perf_counter() - began_s
        process.stdout.read()
    assert process.returncode == 0
    return {"first_text_s": round(first_s, 2), "all_s": round(time.perf_counter() - began_s, 2)}


def random_net(arguments: argparse.Namespace) -> Llama:
    config = LlamaConfig(
        **(SHAPE_SMALL if arguments.small else SHAPE_8B) | {"num_hidden_layers": arguments.layers},
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        net = Llama(config)
    net.to(torch.bfloat16).to_empty(device="cuda")
    torch.manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    return net.requires_grad_(False)


def their_model(net: Llama) -> Any:
    """transformers' model of the same weights."""
    import transformers

    config = transformers.LlamaConfig(
        **{name: getattr(net.config, name) for name in SHAPE_8B},
        rms_norm_eps=net.config.rms_norm_eps,
        max_position_embeddings=net.config.max_position_embeddings,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": net.config.rope_theta,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        dtype="bfloat16",
    )
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(net.state_dict(), assign=True)
    return model.eval()


@torch.inference_mode()
def their_answers(model: Any, tokens: torch.Tensor, count: int) -> list[list[int]]:
    settings = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[:, tokens.shape[1] :].tolist()


CASES: dict[str, Callable[[argparse.Namespace], Any]] = {
    "commands": commands,
    "numerics": numerics,
    "steps": steps,
    "peer": peer,
}


if __name__ == "__main__":
    main()
