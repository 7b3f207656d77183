"""Each optimisation switched off and on, in turn in one run, beside what was predicted of it.

    python benchmarks/optimisations.py [--only loss,startup] [--out FILE] [--repeats 7]

A row: what is compared, the predicted ratio (after / before) with what it was predicted from, both
medians, the median ratio of the pairs, the unit. The two of a pair follow each other (A B A B), so
that a machine that drifts drifts for both. "CPU s" are those of all threads and children, which a
busy machine disturbs less than wall time. Where a switch is no part of the package, what is off is
the plain torch that everybody writes. Rows go to benchmarks/results/optimisations.jsonl, an old one
of the same name being replaced, and into the table of docs/benchmarks.md.
benchmarks/optimisations_ranks.py has those of two processes.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_llama.bench import machine
from ds_llama.config import LlamaConfig
from ds_llama.launcher import command, routes
from ds_llama.launcher.environment import rank_environment
from ds_llama.measure import rates
from ds_llama.measure.accounting import Account
from ds_llama.model.attention import attend
from ds_llama.model.llama import Block
from ds_llama.model.loss import linear_cross_entropy
from ds_llama.model.mlp import MLP
from ds_llama.model.norm import RMSNorm
from ds_llama.model.rope import RotaryTable
from ds_llama.planner import work

HERE = Path(__file__).parent
RESULT = HERE / "results" / "optimisations.jsonl"
DOCS = HERE.parent / "docs" / "benchmarks.md"
TABLE = re.compile(r"(?<=<!-- optimisations -->\n).*?(?=<!-- end -->)", re.DOTALL)
CPU = torch.device("cpu")
B, T, D, FF, V, H = 4, 512, 512, 1408, 32000, 8
N = B * T
MODEL = LlamaConfig(
    hidden_size=D, intermediate_size=FF, num_hidden_layers=1, num_attention_heads=H,
    num_key_value_heads=H, vocab_size=V, max_position_embeddings=T,
)  # fmt: skip
Row = dict[str, Any]
Call = Callable[[], Any]


class Compared(NamedTuple):
    """What is compared; `predicted` is a ratio."""

    name: str
    what: str
    predicted: float
    predicted_from: str
    unit: str = "CPU s"

    def row(self, before: list[float], after: list[float]) -> Row:
        pairs = [b / a for a, b in zip(before, after, strict=True)]
        medians = {"before": statistics.median(before), "after": statistics.median(after)}
        return {**self._asdict(), **medians, "ratio": statistics.median(pairs), "pairs": pairs}


def in_turn(compared: Compared, before: Call, after: Call, repeats: int) -> Row:
    """CPU seconds of both, after one call of each that is not counted."""
    found: tuple[list[float], list[float]] = [], []
    for number in range(repeats + 1):
        for call, seconds in zip((before, after), found, strict=True):
            start = time.process_time()
            call()
            if number:
                seconds.append(time.process_time() - start)
    return compared.row(*found)


def once(compared: Compared, before: float, after: float) -> Row:
    """Of what is the same every time: bytes, counts."""
    return compared.row([before], [after])


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16).requires_grad_()


def both_passes(forward: Callable[[], Tensor], *leaves: Tensor) -> None:
    for leaf in leaves:
        leaf.grad = None
    loss = forward()
    loss.backward(torch.ones_like(loss))


def peak_bytes(call: Call) -> int:
    """Live bytes at the peak, those of what is there before included where it is used."""
    account = Account()
    with account, account.phase("both"):
        call()
    return account.phases[0].total.peak_bytes


def kept_bytes(forward: Call, *given: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass beside what it was given."""
    own = {tensor.untyped_storage().data_ptr() for tensor in given}
    found = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(size for pointer, size in found.items() if pointer not in own)


def loss(repeats: int) -> Iterator[Row]:
    """The LM head with its loss."""
    x, weight, targets = drawn(N, D), (drawn(V, D).detach() / D**0.5), torch.randint(0, V, (N,))
    weight.requires_grad_()
    flops, memory = rates.best_matmul(CPU, torch.bfloat16), rates.memory(CPU)

    def plain() -> None:
        both_passes(lambda: F.cross_entropy(F.linear(x, weight).float(), targets), x, weight)

    def fused() -> None:
        both_passes(lambda: linear_cross_entropy(x, weight, targets), x, weight)

    # Bytes of each logit: bf16 written, fp32 copy, log-softmax, its gradient, that in bf16, read
    # by two products; against those of one that is made and left in bf16 in the cache.
    products, passes = 6 * N * D * V / flops, (2 + 6 + 8 + 12 + 6 + 4, 2 + 4 + 4)
    predicted = (products + passes[1] * N * V / memory) / (products + passes[0] * N * V / memory)
    how = f"the same products, {passes[1]} instead of {passes[0]} bytes moved a logit"
    what = f"LM head and loss in one against F.cross_entropy over {N} x {V} logits"
    yield in_turn(Compared("loss", what, predicted, how), plain, fused, repeats)
    before, chunk = (2 + 4 + 4 + 4) * N * V, 2 * 1024 * V + 3 * 2 * D * V
    how = "logits as bf16, fp32, log-softmax and gradient; against 1024 rows of them and dW"
    found = peak_bytes(plain), peak_bytes(fused)
    yield once(Compared("loss memory", what, chunk / before, how, "peak bytes"), *found)


def norm(repeats: int) -> Iterator[Row]:
    """RMSNorm."""
    ours, x = RMSNorm(D, 1e-6).to(torch.bfloat16), drawn(B, T, D)
    nn.init.ones_(ours.weight)

    def plain() -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return ours.weight * wide.to(x.dtype)

    def own() -> Tensor:
        return ours(x)

    what, leaves = f"RMSNorm's own backward pass, {N} x {D}, against autograd's", (x, ours.weight)
    calls = [lambda each=each: both_passes(each, *leaves) for each in (plain, own)]
    how = "102 bytes moved an element instead of 112, counted by hand"
    yield in_turn(Compared("norm", what, 102 / 112, how), *calls, 10 * repeats)
    how = "a number a token, instead of the fp32 input twice and the bf16 result"
    found = [kept_bytes(each, *leaves) for each in (plain, own)]
    yield once(Compared("norm memory", what, 4 / (10 * D), how, "bytes kept"), *found)


def swiglu(repeats: int) -> Iterator[Row]:
    """The feed-forward half's last two steps."""
    down = MLP(MODEL).to(torch.bfloat16).down_proj
    nn.init.normal_(down.weight, std=0.02)
    gate, up = drawn(B, T, FF), drawn(B, T, FF)

    def plain() -> Tensor:
        return F.linear(F.silu(gate) * up, down.weight)

    def own() -> Tensor:
        return down(gate, up)

    what, leaves = f"down(silu(gate) * up), {N} x {FF}, against autograd's", (gate, up, down.weight)
    calls = [lambda each=each: both_passes(each, *leaves) for each in (plain, own)]
    how = "one more silu and product, in place of fresh buffers: the same time"
    yield in_turn(Compared("swiglu", what, 1.0, how), *calls, 3 * repeats)
    how = "nothing is kept, instead of silu(gate) and the product"
    found = [kept_bytes(each, *leaves) for each in (plain, own)]
    yield once(Compared("swiglu memory", what, 0.0, how, "bytes kept"), *found)


def attention(repeats: int) -> Iterator[Row]:
    """Causal attention in two calls."""
    q, k, v = (drawn(B, H, T, D // H) for _ in range(3))
    calls = [
        lambda whole=whole: both_passes(lambda: attend(q, k, v, None, whole=whole), q, k, v)
        for whole in (True, False)
    ]
    what = f"causal attention in halves, {B} x {H} heads x {T} tokens, against one call of SDPA"
    how = "three quarters of the scores are computed"
    yield in_turn(Compared("attention halves", what, 0.75, how), *calls, 3 * repeats)


def joined(repeats: int) -> Iterator[Row]:
    """What was not taken: one product instead of three, over weights joined in each pass."""
    x, weights = drawn(B, T, D), [drawn(D, D) for _ in range(3)]

    def three() -> Tensor:
        return torch.cat([F.linear(x, weight) for weight in weights], -1)

    def one() -> Tensor:
        return F.linear(x, torch.cat(weights))

    calls = [lambda each=each: both_passes(each, x, *weights) for each in (three, one)]
    what = f"one QKV product over joined weights, {N} x {D}, against three (not taken)"
    how = "the same FLOPs, and the weights are copied instead of the results"
    yield in_turn(Compared("joined QKV", what, 1.0, how), *calls, 3 * repeats)


def compiled(repeats: int) -> Iterator[Row]:
    """A block, `torch.compile`d as a whole."""
    block = Block(MODEL, 0).to(torch.bfloat16)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.02)
    x, tables = drawn(B, T, D), RotaryTable(MODEL)(0, T, CPU)
    whole, start = torch.compile(block.forward), time.perf_counter()
    calls = [
        lambda forward=forward: both_passes(lambda: forward(x, *tables), x, *block.parameters())
        for forward in (block.forward, whole)
    ]
    calls[1]()
    compile_s = time.perf_counter() - start
    flops, memory = rates.best_matmul(CPU, torch.bfloat16), rates.memory(CPU)
    amounts = [_of_a_block(fused) for fused in (False, True)]
    eager_s, fused_s = (each.flops / flops + each.memory_bytes / memory for each in amounts)
    what = f"a block compiled, {N} tokens, hidden {D}, against eager"
    how = "the plan's FLOPs and bytes of a block at this run's rates of products and copies"
    row = in_turn(Compared("compiled block", what, fused_s / eager_s, how), *calls, repeats)
    yield {**row, "compile_s": compile_s}


def _of_a_block(fused: bool) -> work.Work:
    own = {"element_bytes": 2, "fused": fused}
    attention, mlp = work.attention(MODEL, B, T, **own), work.mlp(MODEL, N, **own)
    return attention.forward + attention.backward + mlp.forward + mlp.backward


def startup(repeats: int) -> Iterator[Row]:
    """From the launcher's start to its end, of two ranks that do nothing."""
    with tempfile.TemporaryDirectory() as name:
        rank = Path(name) / "nothing.py"
        rank.write_text("")
        env = rank_environment(2) | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": _module_path(name)}
        ours = command.local([], 2, env, "nothing")
        theirs = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
        theirs += ["--master_addr", "127.0.0.1", "--master_port", str(routes.free_port())]
        alone = _child([sys.executable, "-c", "import deepspeed"], env)
        found = [
            [_child([*theirs, str(rank)], env), _child(ours, env)] for _ in range(-(-repeats // 2))
        ]
    what = "start and end of two empty ranks by launcher/node.py, against DeepSpeed's runner"
    for index, unit in enumerate(("CPU s", "wall s")):
        before, after = ([pair[side][index] for pair in found] for side in (0, 1))
        predicted = max(0.0, 1 - 2 * alone[index] / statistics.median(before))
        how = "two imports of deepspeed less" + ", and no wait of a second at the end" * index
        if index:
            predicted = max(0.0, predicted - 1 / statistics.median(before))
        yield Compared(f"start-up {unit[:-2]}", what, predicted, how, unit).row(before, after)


_RANK = """
import contextlib, json, sys
import torch
from pathlib import Path
from ds_llama.zero import compilers
if sys.argv[2] == "before":
    compilers.spare, compilers.put_off = (lambda: None), contextlib.nullcontext
from ds_llama.measure import memory
from ds_llama.selftest.tiny import global_batch, make_run
from ds_llama.trainer.build import construct
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step

run = make_run(Path(sys.argv[1]), stage=3)
take_step(register(construct(run), run), [global_batch(0, 2)])
assert ("torch._dynamo" in sys.modules) == (sys.argv[2] == "before")
print(json.dumps(memory.everything(torch.device("cpu"))["rss_bytes"]))
"""


def compiler(repeats: int) -> Iterator[Row]:
    """A rank that compiles nothing, without torch's compiler in it."""
    imports = ("import torch", "import torch, torch._dynamo, torch._inductor.compile_fx")
    show = "; import os; print(int(open('/proc/self/statm').read().split()[1]) * 4096)"
    env = dict(os.environ) | {"PYTHONPATH": _module_path(), "DS_ACCELERATOR": "cpu"}
    bare, whole = (_child([sys.executable, "-c", line + show], env) for line in imports)
    found: dict[str, list[Any]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(-(-repeats // 3)):
            for side, rows in found.items():
                rows.append(_child([sys.executable, "-c", _RANK, folder, side], env))
    what = "construction, registration and a step at stage 3 without torch's compiler imported"
    for index, unit in ((0, "CPU s"), (2, "RSS bytes")):
        before, after = ([float(row[index]) for row in rows] for rows in found.values())
        less = float(whole[index]) - float(bare[index])
        predicted = 1 - less / statistics.median(before)
        how = f"importing it alone takes {less:.3g} {unit}"
        yield Compared(f"no compiler {unit.split()[0]}", what, predicted, how, unit).row(
            before, after
        )


def _module_path(*more: str) -> str:
    return os.pathsep.join([*more, str(HERE.parent), os.environ.get("PYTHONPATH", "")])


def _child(argv: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """CPU seconds with those of its children, wall seconds, and the last line that it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{argv}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, wall, (done.stdout.strip().splitlines() or [""])[-1]


def ranks(repeats: int) -> Iterator[Row]:
    """What takes two processes: optimisations_ranks.py."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = dict(os.environ) | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": _module_path()}
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", *launcher, str(HERE / "optimisations_ranks.py"), folder]
        line = _child([*argv, str(repeats)], env)[2]
    for compared, before, after in json.loads(base64.b64decode(line)):
        yield Compared(**compared).row(before, after)


PARTS = (loss, norm, swiglu, attention, joined, compiled, startup, compiler, ranks)


def write(path: Path, rows: list[Row]) -> None:
    """Into the rows that are there; a new one replaces that of its name."""
    there = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {row["name"]: row for row in [*there, *rows]}
    path.write_text("".join(json.dumps(row) + "\n" for row in found.values()))


def markdown(path: Path) -> str:
    """The rows as a table."""
    lines = ["| | predicted | came | before | after | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in map(json.loads, path.read_text().splitlines()):
        ratios = f"{row['predicted']:.2f} | {row['ratio']:.2f}"
        numbers = f"{row['before']:,.4g} | {row['after']:,.4g} | {row['unit']}"
        lines.append(f"| {row['name']}: {row['what']} | {ratios} | {numbers} |")
    return "\n".join(lines) + "\n"


def line(row: Row) -> str:
    numbers = " ".join(f"{row[name]:>11.4g}" for name in ("before", "after"))
    return (
        f"{row['name']:22} {numbers} {row['unit']:10} {row['predicted']:9.2f} {row['ratio']:6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="parts, by comma: " + ", ".join(p.__name__ for p in PARTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [part.__name__ for part in PARTS]
    torch.set_num_threads(1)
    about = machine.provenance([], "cpu") | {"threads": 1, "command": ["python", *sys.argv]}
    print(f"{'':22} {'before':>11} {'after':>11} {'unit':10} {'predicted':>9} {'ratio':>6}")
    for part in PARTS:
        if part.__name__ in names:
            for row in part(options.repeats):
                write(options.out, [{**row, "repeats": len(row["pairs"]), "provenance": about}])
                print(line(row), flush=True)
    if options.out == RESULT:
        DOCS.write_text(TABLE.sub(lambda found: markdown(RESULT), DOCS.read_text()))


if __name__ == "__main__":
    main()
