"""A script of one's own around Hugging Face's LLaMA: its optimizer, its loop."""

import argparse

import deepspeed
import torch
from torch.utils.data import DataLoader, DistributedSampler
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, default=-1)
parser.add_argument("--config", default="ds_config.json")
args = parser.parse_args()

deepspeed.init_distributed()
rank, world_size = deepspeed.comm.get_rank(), deepspeed.comm.get_world_size()

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
)
model_engine, _, _, _ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
    config=args.config,
    dist_init_required=False,
)

texts = torch.randint(0, 128, (32, 24))
sampler = DistributedSampler(texts, num_replicas=world_size, rank=rank)
loader = DataLoader(texts, batch_size=2, sampler=sampler)

losses = []
for input_ids in loader:
    input_ids = input_ids.to(model_engine.device)
    loss = model_engine(input_ids=input_ids, labels=input_ids).loss
    model_engine.backward(loss)
    model_engine.step()
    losses.append(loss.item())
