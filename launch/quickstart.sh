#!/usr/bin/env bash
# From nothing to a trained LLaMA: a tokenizer, token shards, ZeRO-2 on two processes, perplexity
# on held-out text, a sample, Hugging Face weights. The text is Python's own standard library, which
# is on this machine already. A second run skips what is done.
#
# PYTHON names the interpreter (python3), NPROC the number of processes (2). On a machine without a
# GPU, PIP_EXTRA_INDEX_URL may point pip at an index of CPU wheels of torch, which saves several GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
stop() { printf 'error: %s\nwhere: %s\nremedy: %s\n' "$@" >&2; exit 1; }
say() { printf '\n== %s\n' "$*"; }

command -v "$python" > /dev/null ||
    stop "there is no $python" PATH "install Python 3.10 or newer, or name one: PYTHON=python3.11"
if [[ -f launch/bootstrap.py ]]; then # a checkout; a folder of `ds-llama init` has none
    "$python" launch/bootstrap.py
    export PATH="$PWD/.venv/bin:$PATH"
fi
command -v ds-llama > /dev/null ||
    stop "ds-llama is not on PATH" PATH "activate the environment that ds_llama is installed in"
library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
text=("$library" --suffix .py --exclude site-packages --exclude test --exclude tests
    --exclude pydoc_data --exclude lib2to3 --exclude idlelib)

say "tokenizer: 4096 pieces from the sources in $library"
ds-llama data tokenizer "${text[@]}" --vocab-size 4096 --out quickstart/tokenizer

say "token shards"
ds-llama data prepare "${text[@]}" --tokenizer quickstart/tokenizer --validation 0.05 \
    --out quickstart/shards

say "training on ${NPROC:-2} processes"
ds-llama train ds_configs/runs/quickstart.json --nproc "${NPROC:-2}"

say "perplexity on held-out text"
ds-llama eval quickstart/run

say "a sample"
ds-llama generate quickstart/run --prompt "def " --temperature 0.8 --top-k 40

say "everything is in $PWD/quickstart"
cat << 'END'
  tokenizer/        the sentencepiece model
  shards/           training and held-out tokens, Megatron layout
  run/metrics.jsonl one row a step
  run/checkpoints/  committed checkpoints; `ds-llama checkpoint list quickstart/run`
  run/export/       the weights, for transformers' LlamaForCausalLM.from_pretrained
END
