"""The processes that bench.py measures, each with its model loaded once: bench_workers.py KIND ARGUMENTS...

    ours MODEL THREADS N_GPU_LAYERS     answers "profile|file|natural|forced PROMPTS MIN MAX SEED" (the last two are
                                        dumps of twelve experts into a file) and "splits"
    hf DTYPE THREADS SHAPE              answers "hf PROMPTS MIN MAX SEED": transformers with hooks on the routers;
                                        SHAPE is bench_model's, as JSON
    memory MODEL THREADS PROMPTS WHAT   profiles, or dumps (natural, forced), once into a file and tells this process's
                                        memory
    masked MODEL THREADS                answers "answers PROMPTS MASKS NEW SEED" and "decode SEQUENCES TOKENS NEW SEED",
                                        and on a demo model "sweep SEED" and "naive_sweep PAIRS SEED"
    one MODEL THREADS LIBRARIES         answers "answers COUNT NEW SEED": llama-cpp-python on unpatched libraries

Commands come from stdin, one a line; each is answered by one line of JSON. Prompts are random token ids, MIN to MAX
of them. `wall` and `cpu` are the seconds that the work took, `cpu` of all threads together.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Answer = dict[str, Any]
Prompts = list[list[int]]
UBATCH = 512


def random_prompts(count: int, low: int, high: int, seed: int, vocabulary: int) -> Prompts:
    """``count`` lists of ``low`` to ``high`` token ids."""
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary) for _ in range(rng.randint(low, high))] for _ in range(count)]


def timed(work: Callable[[], object], n_tokens: int) -> Answer:
    """Seconds that ``work`` took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "tokens": n_tokens,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


def serve(handle: Callable[[str, list[int]], Answer]) -> None:
    """Answer the commands on stdin until it ends."""
    for line in sys.stdin:
        mode, *numbers = line.split()
        print(json.dumps(handle(mode, [int(number) for number in numbers])), flush=True)


# --- ours


def ours(model_path: str, threads: str, n_gpu_layers: str) -> None:
    """Profile with safex.Model, default settings."""
    import safex

    model = safex.Model(model_path, n_threads=int(threads), n_gpu_layers=int(n_gpu_layers), n_ubatch=UBATCH)
    vocabulary = model.facts.n_vocab
    model.profile(random_prompts(1, UBATCH, UBATCH, 0, vocabulary))  # warms up
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "bench.profile.gguf"
        features = Path(folder) / "bench.features.safetensors"

        def handle(mode: str, numbers: list[int]) -> Answer:
            if mode == "splits":
                return splits(model)
            prompts = random_prompts(*numbers, vocabulary)
            work = {
                "profile": lambda: model.profile(prompts),
                "file": lambda: model.profile(prompts, output=output, force=True),
                "natural": lambda: dump(model, prompts, "natural", features),
                "forced": lambda: dump(model, prompts, "forced", features),
            }
            return timed(work[mode], sum(map(len, prompts)))

        serve(handle)


def dump(model: Any, prompts: Prompts, routing: str, output: Path) -> None:
    """Twelve experts, the same each time."""
    (experts,) = random_masks(model, 1, random.Random(0))
    model.dump(experts, prompts, routing=routing, output=output, force=True)


def splits(model: Any) -> Answer:
    """Pieces that the graph is cut into, with the tap at work and without."""
    (tokens,) = random_prompts(1, UBATCH, UBATCH, 1, model.facts.n_vocab)
    model.profile([tokens])
    tapped = model.session.n_splits
    model.logits(tokens)
    return {"tapped": tapped, "plain": model.session.n_splits}


# --- Hugging Face


def hf(dtype: str, threads: str, shape_json: str) -> None:
    """Transformers' model of the same shape, its selections counted by hooks on the routers; no output head."""
    import torch
    import transformers

    shape = SimpleNamespace(**json.loads(shape_json))
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    model = transformers.Qwen3MoeModel(hf_config(transformers, shape)).eval()
    counts = torch.zeros(shape.layers, shape.experts, dtype=torch.int64)
    routers = [module for name, module in model.named_modules() if name.endswith(".mlp.gate")]
    for layer, router in enumerate(routers):
        router.register_forward_hook(counter(counts[layer], shape.top_k))

    def run(prompts: Prompts) -> None:
        with torch.inference_mode():
            for prompt in prompts:
                model(torch.tensor([prompt]), use_cache=False)

    def handle(_: str, numbers: list[int]) -> Answer:
        prompts = random_prompts(*numbers, shape.vocabulary)
        counts.zero_()
        answer = timed(lambda: run(prompts), sum(map(len, prompts)))
        return {**answer, "selections": int(counts.sum()), "transformers": transformers.__version__}

    run(random_prompts(1, UBATCH, UBATCH, 0, shape.vocabulary))
    serve(handle)


def hf_config(transformers: Any, shape: Any) -> Any:
    return transformers.Qwen3MoeConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        moe_intermediate_size=shape.expert_width,
        intermediate_size=shape.expert_width,
        num_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        norm_topk_prob=True,
        max_position_embeddings=shape.context,
    )


def counter(counts: Any, top_k: int) -> Callable[[Any, Any, Any], None]:
    """A hook that adds the selections of one router's output: ids where it yields them, else its scores' top k."""

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        ids = next((part for part in parts if not part.is_floating_point()), None)
        if ids is None:
            ids = parts[0].topk(top_k, dim=-1).indices
        counts.add_(ids.flatten().bincount(minlength=len(counts)))

    return hook


# --- evaluation


def prompt_texts() -> list[str]:
    """The demo's held-out requests, sets mixed; on a model with random weights any text will do."""
    from safex.prompts import PromptSet

    texts = [prompt.text for prompt in PromptSet.bundled("demo")]
    random.Random(0).shuffle(texts)
    return texts


def masked(model_path: str, threads: str) -> None:
    """Answers of safex.Model, default settings but for a context that holds all sequences in flight."""
    import safex

    model = safex.Model(model_path, n_threads=int(threads), n_ctx=64 * 128, n_ubatch=UBATCH)
    texts = prompt_texts()
    model.generate(texts[:2], 4)  # warms up
    tasks = {"answers": masked_answers, "decode": decode, "sweep": sweep, "naive_sweep": naive_sweep}
    serve(lambda mode, numbers: tasks[mode](model, texts, numbers))


def random_masks(model: Any, count: int, rng: random.Random) -> list[list[tuple[int, int]]]:
    """Masks of twelve experts."""
    every = [(layer, expert) for layer in model.layers for expert in range(model.n_experts)]
    return [rng.sample(every, 12) for _ in range(count)]


def masked_answers(model: Any, texts: list[str], numbers: list[int]) -> Answer:
    """Every prompt without a mask and under random ones, all in one call."""
    n_prompts, n_masks, n_new, seed = numbers
    masks = [[], *random_masks(model, n_masks - 1, random.Random(seed))]
    prompts = [texts[(seed + i) % len(texts)] for i in range(n_prompts) for _ in masks]
    answer = timed(lambda: model.generate(prompts, n_new, mask=masks * n_prompts), 0)
    return {**answer, "n": len(prompts)}


def decode(model: Any, _: list[str], numbers: list[int]) -> Answer:
    """Seconds for all but the first generated token, routes logged, a mask for each sequence."""
    n_sequences, n_tokens, n_new, seed = numbers
    prompts = random_prompts(n_sequences, n_tokens, n_tokens, seed, model.facts.n_vocab)
    masks = random_masks(model, n_sequences, random.Random(seed))

    def run(new: int) -> Answer:
        return timed(lambda: model.generate(prompts, new, mask=masks, routes=True), n_sequences * new)

    short, long = run(1), run(1 + n_new)
    return {key: long[key] - short[key] for key in ("tokens", "wall", "cpu")}


def sweep(model: Any, _: list[str], numbers: list[int]) -> Answer:
    """Every expert masked alone on all prompts; pairs that no mask can change count as done, as they are."""
    from safex.attribution import sweep as run_sweep

    found: list[Any] = []
    answer = timed(lambda: found.append(run_sweep(model, seed=numbers[0], bootstrap=100)), 0)
    return {**answer, "n": found[0].parameters["computed"] + found[0].parameters["skipped"]}


def naive_sweep(model: Any, texts: list[str], numbers: list[int]) -> Answer:
    """The first token's probabilities, one prompt under one mask a call."""
    n_pairs, seed = numbers
    masks = random_masks(model, n_pairs, random.Random(seed))

    def run() -> None:
        for i, mask in enumerate(masks):
            model.score([texts[i % len(texts)]], [5, 6], [mask[:1]])

    return {**timed(run, 0), "n": n_pairs}


def one(model_path: str, threads: str, libraries: str) -> None:
    """Answers of llama-cpp-python, one after another, until they end or have ``NEW`` tokens."""
    import os

    os.environ["LLAMA_CPP_LIB_PATH"] = libraries
    import llama_cpp

    n = int(threads)
    llama = llama_cpp.Llama(model_path, n_ctx=512, n_threads=n, n_threads_batch=n, verbose=False)
    texts = prompt_texts()

    def answer(text: str, n_new: int) -> None:
        messages = [{"role": "user", "content": text}]
        llama.create_chat_completion(messages, max_tokens=n_new, temperature=0.0, repeat_penalty=1.0)

    def handle(_: str, numbers: list[int]) -> Answer:
        count, n_new, seed = numbers
        chosen = [texts[(seed + i) % len(texts)] for i in range(count)]
        return {**timed(lambda: [answer(text, n_new) for text in chosen], 0), "n": count}

    answer(texts[0], 4)
    serve(handle)


# --- memory


def status_bytes(key: str) -> int:
    """A memory figure of this process: VmRSS now, VmHWM at its peak."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def memory(model_path: str, threads: str, n_prompts: str, what: str = "profile") -> None:
    """Run 20 to 120 tokens a prompt into a file; memory right before, with the prompts made, and at the peak."""
    import safex

    with (
        safex.Model(model_path, n_threads=int(threads), n_ubatch=UBATCH) as model,
        tempfile.TemporaryDirectory() as folder,
    ):
        vocabulary = model.facts.n_vocab

        def run(prompts: Prompts, name: str) -> None:
            if what == "profile":
                model.profile(prompts, output=Path(folder) / name)
            else:
                dump(model, prompts, what, Path(folder) / name)

        run(random_prompts(1, UBATCH, UBATCH, 0, vocabulary), "first")
        prompts = random_prompts(int(n_prompts), 20, 120, 1, vocabulary)
        before = status_bytes("VmRSS")
        run(prompts, "all")
        answer = {"weights": model.facts.n_bytes, "before": before, "peak": status_bytes("VmHWM")}
    print(json.dumps(answer))


if __name__ == "__main__":
    kinds = {"ours": ours, "hf": hf, "memory": memory, "masked": masked, "one": one}
    kinds[sys.argv[1]](*sys.argv[2:])
