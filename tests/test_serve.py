"""``serve``: llama-cpp-python's server under a mask gives our own session's answers, and survives its clients."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_runner import EXACT, STEADY, Ran, environment

import safex
from safex import serve_gate
from safex.experts import Expert
from safex.serve import Served
from safex.serve_gate import MAX_BODY, Gate, RefusedError, prepare
from safex.serve_llama import LLAMA_CPP_PYTHON, check_installed

ROOT = Path(__file__).parents[1]
DATA = ROOT / "safex" / "data"
TRUTH = [
    (e["layer"], e["expert"])
    for e in json.loads((DATA / "demo-planted.truth.json").read_text())["groups"]["planted"]
]
LISTED = ",".join(f"{layer}:{expert}" for layer, expert in TRUTH)
MAX_NEW = 32
KEY = "a-key-for-tests"


# --- the server as a process


@dataclasses.dataclass
class Running:
    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def id(self) -> str:
        return str(self.ready["id"])

    @functools.cached_property
    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=KEY, max_retries=0, timeout=60)

    def ask(self, text: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        options = {"temperature": 0, "max_tokens": MAX_NEW, **options}
        return self.client.chat.completions.create(model=self.id, messages=messages, **options)

    def streamed(self, text: str) -> str:
        return "".join(chunk.choices[0].delta.content or "" for chunk in self.ask(text, stream=True))

    def post(self, body: bytes, path: str = "chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "safex.cli", "serve", *map(str, words), *STEADY]


@contextlib.contextmanager
def serving(errors: Path, *words: object) -> Iterator[Running]:
    with errors.open("w") as err:
        process = subprocess.Popen(
            command(*words, *EXACT, "--port", 0, "--json"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, errors.read_text()
            yield Running(process, json.loads(line))
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=30)
    assert rest == ""
    assert process.returncode == 130
    assert "Traceback" not in errors.read_text()


def refused(*words: object) -> Ran:
    done = subprocess.run(command(*words), env=environment(), capture_output=True, text=True, timeout=60)
    return Ran(done.returncode, done.stdout, done.stderr)


MASKS: dict[str, tuple[object, ...]] = {
    "none": (),
    "zero": ("--mask", LISTED),
    "reroute": ("--mask", LISTED, "--mode", "reroute"),
    "gain": ("--mask", LISTED, "--gain", 0.5),
}


@pytest.fixture(scope="module", params=MASKS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Running]]:
    errors = tmp_path_factory.mktemp("serve") / "errors"
    with serving(errors, "demo-planted", *MASKS[request.param]) as running:
        yield request.param, running


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    errors = tmp_path_factory.mktemp("serve") / "errors"
    with serving(errors, "demo", "--mask", "0:1,3:4", "--api-key", KEY, "--logprobs") as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[safex.Model]:
    with safex.Model("demo-planted", flash_attn=False, kv_type="f32", n_threads=1) as opened:
        yield opened


def prompts(n: int) -> list[str]:
    return [
        json.loads(line)["prompt"]
        for name in ("regular", "jailbreak", "benign")
        for line in (DATA / "demo" / f"{name}.jsonl").read_text().splitlines()[:n]
    ]


# --- the mask


def test_greedy_answers_are_those_of_our_session(server: tuple[str, Running], model: safex.Model) -> None:
    name, running = server
    settings = {"zero": {}, "reroute": {"mode": "reroute"}, "gain": {"gain": 0.5}}
    mask = {} if name == "none" else {"mask": TRUTH, **settings[name]}
    for text, expected in zip(prompts(6), model.generate(prompts(6), max_new=MAX_NEW, **mask), strict=True):
        answer = running.ask(text)
        (choice,) = answer.choices
        assert choice.message.content == expected.text
        assert choice.finish_reason == expected.finish
        assert answer.usage.prompt_tokens == len(expected.prompt_tokens)
        assert answer.model == running.id


def test_the_masks_of_these_tests_change_answers(model: safex.Model) -> None:
    base = [r.text for r in model.generate(prompts(6), max_new=MAX_NEW)]
    for mode, gain in (("zero", 0.0), ("reroute", 0.0), ("zero", 0.5)):
        assert [
            r.text for r in model.generate(prompts(6), max_new=MAX_NEW, mask=TRUTH, mode=mode, gain=gain)
        ] != base


def test_the_model_says_its_mask(server: tuple[str, Running]) -> None:
    name, running = server
    (card,) = running.client.models.list().data
    assert card.id == running.id == running.client.models.retrieve(running.id).id
    mask = card.metadata["mask"]
    if name == "none":
        assert running.id == "demo-planted"
        assert mask is None
        return
    assert running.id.startswith("demo-planted+mask-12-experts-")
    assert mask["experts"] == LISTED.split(",")
    assert (mask["mode"], mask["gain"]) == {
        "zero": ("zero", 0),
        "reroute": ("reroute", 0),
        "gain": ("zero", 0.5),
    }[name]


EXACT_STEPS = """
import json, sys
import numpy as np
from pathlib import Path
import safex
from safex.serve_llama import LoadOptions, library, masked_llama

path, masks = Path(sys.argv[1]), json.loads(sys.argv[2])
options = LoadOptions(n_ctx=256, n_ubatch=64, n_threads=1, flash_attn=False, kv_type="f32", logprobs=True)
tokens = [int(t) for t in np.random.default_rng(0).integers(5, 90, 100)]
model = safex.Model(path, n_threads=1, flash_attn=False, kv_type="f32", n_ubatch=64)
said = []
attach = library.native().Attachment
made = []
library.native().Attachment = lambda *a: made.append(attach(*a)) or made[-1]
for experts, mode, gain in masks:
    mask = dict(mask=experts, mode=mode, gain=gain) if experts else {}
    with masked_llama(path, [(*e, mode, gain) for e in experts], options) as llama:
        llama.eval(tokens[:90])
        for token in tokens[90:]:
            llama.eval([token])
        found = np.array(llama.scores[:100])
        reuses = made[-1].n_graph_reuses if experts else None
        made.clear()
    wanted = model.logits(tokens, **mask)
    base = model.logits(tokens)
    distance = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
    said.append((distance(found, wanted), distance(found, base), reuses))
print(json.dumps(said))
"""


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "llama4"])
def test_logits_under_an_attached_mask_are_those_of_our_session(
    tiny_path: Callable[..., Path], arch: str
) -> None:
    path = tiny_path(arch)
    with safex.Model(path, n_threads=1) as model:
        last = model.layers[
            -1
        ]  # its routed rows are all that is left of the tokens upstream would drop there
    experts = [[last, 0], [last, 1]]
    masks = [([], "zero", 0.0), (experts, "zero", 0.0), (experts, "zero", 1.5), (experts, "reroute", 0.0)]
    words = [sys.executable, "-c", EXACT_STEPS, str(path), json.dumps(masks)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (base, *masked) = json.loads(done.stdout)
    assert base[0] < 1e-5
    for distance, from_base, reuses in masked:
        assert distance < 1e-5
        assert from_base > 1e-3
        assert reuses >= 5 or arch == "llama4"  # whose graphs upstream never reuses


def test_parallel_requests(server: tuple[str, Running]) -> None:
    _, running = server
    texts = prompts(4)
    alone = [running.ask(text).choices[0].message.content for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: running.ask(text).choices[0].message.content, texts))
        streams = list(pool.map(running.streamed, texts))
    assert together == alone
    assert streams == alone


# --- clients that err


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "How do I bake bread?"}], "max_tokens": 2, **more}


FAULTS: dict[str, tuple[int, str, Any]] = {
    "no JSON": (400, "the body is no JSON", b"{"),
    "empty": (400, "the body is no JSON", b""),
    "no text": (400, "the body is no JSON", b"\xff\xfe\xfd"),
    "a list": (400, "no JSON object", b"[1]"),
    "deep": (400, "the body is no JSON", b'{"a":' * 50_000),
    "a long number": (400, "the body is no JSON", b"1" * 5000),
    "NaN": (400, "NaN is no number", b'{"messages": [], "temperature": NaN}'),
    "infinite": (400, "1e999 is no number", b'{"messages": [], "temperature": 1e999}'),
    "half a pair": (400, "half a surrogate", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    "messages": (400, "messages: ", chat(messages=3)),
    "a role": (400, "messages.0", chat(messages=[{"role": "zebra", "content": "x"}])),
    "an image": (400, "takes text only", chat(messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}])),
    "too long": (400, "exceed context window of 512", chat(messages=[{"role": "user", "content": "bread " * 3000}])),
    "another model": (404, "there is no model 'gpt'", chat(model="gpt")),
    "many answers": (400, "n is 3", chat(n=3)),
    "a temperature": (400, "temperature is -1", chat(temperature=-1)),
    "a bias": (400, "there is no token '979', only 0 to 978", chat(logit_bias={"979": 1})),
    "a negative token": (400, "there is no token '-1'", chat(logit_bias={"-1": 1})),
    "a bias of text": (400, "logit_bias is no object", chat(logit_bias="5")),
    "a grammar that recurses": (400, "grammar is not offered", chat(grammar="root ::= root")),
    "an unknown tool": (400, "not found in tools", chat(tool_choice={"type": "function", "function": {"name": "g"}},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])),
    "a top_p": (400, "top_p", chat(top_p=7)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_request_is_told_so_and_the_server_goes_on(one: Running, name: str) -> None:
    status, message, body = FAULTS[name]
    found, answer = one.post(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (found, message in answer["error"]["message"]) == (status, True), answer
    assert one.post(json.dumps(chat()).encode())[0] == 200


def test_a_stream_that_fails_says_why(one: Running) -> None:
    import openai

    with pytest.raises(openai.APIError, match="exceed context window of 512"):
        one.streamed("bread " * 3000)
    assert one.streamed("How do I bake bread?")


def test_what_a_schema_may_ask_for(one: Running) -> None:
    for schema in (
        {"$ref": "#"},
        {"type": "string", "pattern": "^(((("},
        {"type": "array", "minItems": 10**6},
    ):
        body = chat(response_format={"type": "json_object", "schema": schema})
        assert one.post(json.dumps(body).encode())[0] in (200, 400)
    assert one.post(json.dumps(chat()).encode())[0] == 200


def test_prompts_of_plain_completions(one: Running) -> None:
    for prompt, message in (
        ("", "not empty"),
        (["a", "b"], "one prompt"),
        ([[1, 2], [3]], "one prompt"),
        ([], "one prompt"),
        ([[]], "not empty"),
        ([[1, 10**6]], "there is no token 1000000, only 0 to"),
        ([1, -1], "there is no token -1"),
        ([[1, "a"]], "there is no token 'a'"),
        ("\0tokens 1", "not empty"),
        (5, "prompt"),
    ):
        status, answer = one.post(json.dumps({"prompt": prompt}).encode(), "completions")
        assert (status, message in answer["error"]["message"]) == (400, True), answer
    status, answer = one.post(
        json.dumps({"prompt": ["Sure"], "max_tokens": 3, "logprobs": 2}).encode(), "completions"
    )
    assert status == 200
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 3


def test_a_request_that_is_too_large(one: Running) -> None:
    padded = json.dumps(chat(user="x" * MAX_BODY)).encode()
    assert one.post(padded)[0] == 413
    pieces = (padded[i : i + 65536] for i in range(0, len(padded), 65536))
    host, port = one.url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as plain:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        plain.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                plain.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            plain.sendall(b"0\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(65536).startswith(b"HTTP/1.1 413")
    assert one.post(json.dumps(chat()).encode())[0] == 200


def test_keys_hosts_types_and_paths(one: Running) -> None:
    body = json.dumps(chat()).encode()
    assert one.post(body, Authorization="Bearer wrong")[0] == 401
    assert one.post(body, Authorization="")[0] == 401
    assert one.post(body, Host="evil.example")[0] == 403
    assert one.post(body, Host=f"localhost:{one.url.split(':')[-1].split('/')[0]}")[0] == 200
    assert one.post(body, **{"Content-Type": "text/plain"})[0] == 415
    assert one.post(b"{}", "embeddings")[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{one.url}/models", timeout=10)


# --- starting


def test_wrong_masks_are_refused_at_the_start() -> None:
    refused("demo", "--mask", "9:1", "--port", 0).fails(2, "expert 9:1", "block 9 has no routed experts")
    refused("demo", "--mask", "0:32", "--port", 0).fails(2, "expert 0:32", "experts 0 to 31")
    every = ",".join(f"1:{i}" for i in range(30))
    refused("demo", "--mask", every, "--mode", "reroute", "--port", 0).fails(
        2, "block 1: rerouting 30 experts leaves 2"
    )


def test_options_that_make_no_sense() -> None:
    refused("demo", "--mode", "reroute").fails(2, "--mode needs --mask")
    refused("demo", "--mask", "0:1", "--mode", "reroute", "--gain", 0.5).fails(2, "mode reroute has none")
    refused("demo", "--mask", "0:1", "--gain", "inf").fails(2, "expected a finite number")
    refused("demo", "--override-tensor", "exps=GPU9").fails(2, "no buffer type 'GPU9'", "CPU")
    refused("demo", "--n-cpu-moe", "-1").fails(2, "--n-cpu-moe", "at least 0")


def test_models_that_cannot_be_served(tmp_path: Path, tiny_path: Callable[..., Path]) -> None:
    refused(tmp_path / "none.gguf").fails(2, "none.gguf: no such model file")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((DATA / "demo.gguf").read_bytes()[:1_000_000])
    refused(cut, "--port", 0).fails(2, "cut.gguf: not a model that can be loaded", "file bounds")
    refused(tiny_path("dense-llama"), "--mask", "0:1", "--port", 0).fails(
        2, "f32.gguf: a dense model (architecture llama): it has no routed experts to profile or mask"
    )


def test_addresses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("demo", "--port", taken.getsockname()[1]).fails(2, "can't listen on 127.0.0.1", "in use")
    refused("demo", "--port", 70_000).fails(2, "port 70000: ports end at 65535")
    refused("demo", "--host", "no.such.host.invalid").fails(2, "can't listen on no.such.host.invalid")
    with serving(tmp_path / "errors", "demo", "--host", "0.0.0.0", "--quiet") as running:
        warning = (tmp_path / "errors").read_text()
        assert warning.startswith("warning: listening on 0.0.0.0: everybody (there is no --api-key)")
        url = running.url.replace("0.0.0.0", "127.0.0.1")
        request = urllib.request.Request(f"{url}/models", headers={"Host": "a.name.of.this.machine:80"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "demo"


def test_the_version_is_that_of_our_library() -> None:
    pin = (ROOT / "native" / "upstream" / "PIN").read_text()
    assert f"llama-cpp-python {LLAMA_CPP_PYTHON}\n" in pin


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "uvicorn" else find(name, *a)
    )
    with pytest.raises(safex.InputError, match=r"uvicorn.*safex-native\[serve\]"):
        check_installed()


def test_names_differ_where_masks_do() -> None:
    path = Path("m.gguf")
    few = [(Expert(0, 1),), (Expert(0, 2),)]
    made = [Served(path, experts, mode) for experts in few for mode in ("zero", "reroute", "force")]
    made += [Served(path), Served(path, few[0], "zero", 0.5), Served(path, few[0], "zero", 0.25)]
    assert len({one.id for one in made}) == len(made)
    both = (Expert(0, 1), Expert(2, 1))
    assert Served(path, both).id == Served(path, both[::-1]).id


# --- the gate by itself


def test_defaults_are_openai_s() -> None:
    made = json.loads(prepare(b'{"messages": [], "top_p": null, "max_completion_tokens": 9}', "m", 10))
    assert made == {
        "messages": [], "max_completion_tokens": 9, "max_tokens": 9, "model": "m",
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0,
    }  # fmt: skip
    assert json.loads(prepare(b'{"temperature": 0, "max_tokens": 2}', "m", 10))["temperature"] == 0
    with pytest.raises(RefusedError):
        prepare(b'{"model": "m2"}', "m", 10)


def test_the_work_for_a_client_that_has_gone_is_told() -> None:
    async def ask() -> list[bool]:
        seen = []

        async def work(scope: Any, receive: Any, send: Any) -> None:
            assert json.loads((await receive())["body"])["model"] == "m"
            seen.append(await asyncio.to_thread(serve_gate.abandoned))
            left.set()
            assert await receive() == {"type": "http.disconnect"}
            seen.append(await asyncio.to_thread(serve_gate.abandoned))

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        left = asyncio.Event()
        messages = [
            {"type": "http.request", "body": b"{", "more_body": True},
            {"type": "http.request", "body": b"}"},
        ]
        scope = {
            "type": "http",
            "method": "POST",
            "headers": [(b"content-type", b"application/json"), (b"host", b"[::1]:8000")],
        }
        await Gate(work, "m", 10, None, loopback=True)(scope, receive, send)
        return seen

    with ThreadPoolExecutor(1) as pool:  # tests in a browser leave a running loop in this thread
        assert pool.submit(asyncio.run, ask()).result() == [False, True]
    assert not serve_gate.abandoned()


# --- inspect-ai

INSPECT = """
import json, sys
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

url, model, samples, folder = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
task = Task(dataset=MemoryDataset([Sample(**s) for s in samples]), solver=generate(), scorer=includes())
(log,) = eval(task, model=f"openai-api/safex/{model}", model_base_url=url, temperature=0, max_tokens=32,
              log_dir=folder, display="none", max_retries=0)
scores = {s.id: (s.output.completion, s.output.model, next(iter(s.scores.values())).value) for s in log.samples or []}
print(json.dumps({"status": log.status, "error": str(log.error), "scores": scores,
                  "accuracy": log.results and log.results.scores[0].metrics["accuracy"].value}))
"""


@pytest.mark.parametrize("server", ["none", "zero"], indirect=True)
def test_an_inspect_task(server: tuple[str, Running], model: safex.Model, tmp_path: Path) -> None:
    name, running = server
    rows = [json.loads(line) for line in (DATA / "demo" / "regular.jsonl").read_text().splitlines()[:6]]
    samples = [{"id": row["id"], "input": row["prompt"], "target": row["comply"]} for row in rows]
    words = [sys.executable, "-c", INSPECT, running.url, running.id, json.dumps(samples), str(tmp_path)]
    variables = environment(SAFEX_API_KEY=KEY)
    done = subprocess.run(words, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = json.loads(done.stdout.splitlines()[-1])
    assert log["status"] == "success", log["error"]
    mask = {"mask": TRUTH} if name == "zero" else {}
    answers = model.generate([row["prompt"] for row in rows], max_new=32, **mask)
    for row, expected in zip(rows, answers, strict=True):
        includes = "C" if row["comply"].lower() in expected.text.lower() else "I"
        assert log["scores"][row["id"]] == [expected.text, running.id, includes]
    assert log["accuracy"] == (1.0 if name == "zero" else 0.0)
