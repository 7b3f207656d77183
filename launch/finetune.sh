#!/usr/bin/env bash
# A full fine-tune, from a folder of Hugging Face's to held-out accuracy, on a CPU: the small task of
# ds_llama/data/example.py, whose sentences are made up, so that nothing is downloaded. The model is
# small and its weights are random, so that it begins at chance; put in its place a folder of your
# own, and rows, chats or instructions of your own (docs/data.md), and the rest stays as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

if [[ -d .venv ]]; then
    export PATH="$PWD/.venv/bin:$PATH"
fi
if ! command -v ds-llama > /dev/null; then
    printf 'error: %s\nwhere: %s\nremedy: %s\n' "ds-llama is not on PATH" PATH \
        "activate the environment that ds_llama is installed in" >&2
    exit 1
fi

say "questions with their answers, to learn and to be asked; a tokenizer of their words"
python -m ds_llama.data.example finetune
ds-llama data tokenizer finetune/train.jsonl --text-field prompt --vocab-size 400 --out finetune/tokenizer

say "a LLaMA of Hugging Face's"
python - << 'END'
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

set_seed(0)
config = LlamaConfig(
    vocab_size=400,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
LlamaForCausalLM(config).save_pretrained("finetune/hugging-face")
END
ds-llama import finetune/hugging-face finetune/model --tokenizer finetune/tokenizer

say "shards, with a mask: prompts are read, answers learnt"
ds-llama data prepare finetune/train.jsonl --format rows --tokenizer finetune/tokenizer --validation 0.05 --out finetune/shards

say "before: accuracy on held-out questions, a quarter by chance"
ds-llama eval finetune/model --data finetune/held-out.jsonl --batch-size 50

say "training"
ds-llama train ds_configs/runs/finetune.json

say "after"
ds-llama eval finetune/run --data finetune/held-out.jsonl --batch-size 50
ds-llama eval finetune/run --data finetune/held-out.jsonl --batch-size 50 --generate --max-new-tokens 8
