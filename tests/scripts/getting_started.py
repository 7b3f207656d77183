"""The training script that DeepSpeed's "Getting started" page describes, whole."""

import argparse

import deepspeed
import torch
from torch import nn
from torch.utils.data import TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--local_rank", type=int, default=-1)
parser.add_argument("--save_dir", default="checkpoints")
parser.add_argument("--load_dir")
parser.add_argument("--ckpt_id")
parser = deepspeed.add_config_arguments(parser)
args = parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layers(inputs), labels)


torch.manual_seed(0)
dataset = TensorDataset(torch.randn(32, 16), torch.randint(0, 4, (32,)))
model = Net()
params = filter(lambda parameter: parameter.requires_grad, model.parameters())

model_engine, optimizer, data_loader, lr_scheduler = deepspeed.initialize(
    args=args,
    model=model,
    model_parameters=params,
    training_data=dataset,
    lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.5),
)

client_sd = {"step": -1}
if args.load_dir:
    _, client_sd = model_engine.load_checkpoint(args.load_dir, args.ckpt_id)

losses = []
for step, batch in enumerate(data_loader):
    if step <= client_sd["step"]:
        continue

    # forward() method
    loss = model_engine(batch)

    # runs backpropagation
    model_engine.backward(loss)

    # weight update
    model_engine.step()

    losses.append(loss.item())
    if step == 3:
        client_sd["step"] = step
        model_engine.save_checkpoint(args.save_dir, f"step{step}", client_state=client_sd)
