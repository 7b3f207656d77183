"""What starts the ranks of one host: DeepSpeed's launch.py, or torchrun."""

from __future__ import annotations

from ds_llama.launcher.job import Job


def argv(job: Job, index: int, *, logs: bool = True) -> list[str]:
    """For host number `index` of the job; with `logs` each rank writes into a file of its own."""
    if job.starter == "torchrun":
        return _torchrun(job, index, logs)
    # Which is launch.py, and leaves marks for those who read the logs.
    module = "ds_llama.launcher.node" if logs else "deepspeed.launcher.launch"
    words = ["-u", "-m", module, f"--world_info={job.world_info()}"]
    words += [f"--node_rank={index}", f"--master_addr={job.master_addr}"]
    words += [f"--master_port={job.master_port}"]
    words += [f"--enable_each_rank_log={job.logs}"] if logs else []
    return [job.python, *words, "--log_level=critical", "--module", job.module, *job.arguments]


def _torchrun(job: Job, index: int, logs: bool) -> list[str]:
    words = ["-u", "-m", "torch.distributed.run", f"--nnodes={len(job.hosts)}"]
    words += [f"--node_rank={index}", f"--nproc_per_node={job.hosts[index].slots}"]
    words += [f"--master_addr={job.master_addr}", f"--master_port={job.master_port}"]
    rank = ["-m", "ds_llama.launcher.torch_rank", job.logs] if logs else ["-m"]
    return [job.python, *words, *rank, job.module, *job.arguments]


def environment(job: Job, index: int) -> dict[str, str]:
    """What it has to find: the devices, which launch.py is told in --world_info."""
    devices = ",".join(map(str, job.hosts[index].device_ids))
    return {"CUDA_VISIBLE_DEVICES": devices} if job.starter == "torchrun" else {}
