"""The largest micro batch or sequence that fits, and the least that makes anything fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ds_llama.config.resolve import Resolved, data_parallel_ranks, resolve
from ds_llama.config.run import Run
from ds_llama.errors import ConfigError
from ds_llama.planner import strategies
from ds_llama.planner.fit import Machine, headroom, room
from ds_llama.planner.memory import Memory, memory
from ds_llama.planner.settings import Settings
from ds_llama.planner.strategies import Candidate

_MOST_SEQUENCES = 2**20
_MOST_RANKS = 2**17
_SHORTEST = 128  # tokens


def spare(run: Run, machine: Machine) -> int | None:
    """Bytes that are left of the scarcest memory; negative where the run does not fit, None where
    that needs no look or the run does not resolve."""
    try:
        resolved = resolve(run, machine.world_size, device=machine.device)
    except ConfigError:
        return None
    return (
        None if hopeless(resolved, machine) else headroom(memory(resolved, room(machine)), machine)
    )


def max_micro_batch(candidate: Candidate, machine: Machine) -> int | None:
    """The largest micro batch that fits; None where one sequence is too many.

    Where the run says its global batch, a micro batch divides a rank's share of it.
    """
    run, resolved = candidate.run, candidate.resolved
    ranks = data_parallel_ranks(run, machine.world_size)

    def left(micro: int) -> int | None:
        return spare(strategies.with_batch(run, resolved, micro=micro, ranks=ranks), machine)

    if not strategies.fixed_global_batch(run):
        return largest(left, _MOST_SEQUENCES)
    share = resolved.global_batch_size // ranks
    # The whole share at once adds up nothing, which can take less than half of it twice.
    if (whole := left(share)) is not None and whole >= 0:
        return share
    divisors = [size for size in range(1, share) if share % size == 0]
    found = largest(lambda index: left(divisors[index - 1]), len(divisors))
    return None if found is None else divisors[found - 1]


def max_sequence(candidate: Candidate, machine: Machine) -> int | None:
    """The longest sequence that fits, at most the model's max_position_embeddings."""
    run = candidate.run

    def left(length: int) -> int | None:
        return spare(strategies.with_sequence(run, length + 1), machine)

    found = largest(left, candidate.resolved.model.max_position_embeddings - 1)
    return None if found is None else found + 1  # a sequence has two tokens at least


def largest(left: Callable[[int], int | None], most: int) -> int | None:
    """The largest n of 1 to `most` with left(n) >= 0; None where there is none.

    `left` falls. It is nearly linear (activations are), so that a secant finds the place in a few
    steps; every other step halves what is left of the interval, so that none takes many.
    """
    here = left(1) if most else None
    if here is None or here < 0:
        return None
    there = left(most)
    if there is not None and there >= 0:
        return most
    low, high, halve = 1, most, there is None
    while high - low > 1:
        middle = (low + high) // 2
        if not halve and there is not None:
            middle = low + int((high - low) * (here / (here - there)))
            middle = min(max(middle, low + 1), high - 1)
        value = left(middle)
        if value is not None and value >= 0:
            low, here = middle, value
        else:
            high, there = middle, value
        halve = not halve or there is None
    return low


Found = tuple[str, Machine, Candidate, Memory]


def changes(run: Run, resolved: Resolved, machine: Machine, beside_states: int) -> Iterator[Found]:
    """The least change of each kind that makes something fit: words, and what fits then.

    beside_states: bytes of activations and logits that every strategy holds, on any world.
    """
    found = first(list(smaller(run, resolved, machine)), machine)
    if found is not None:
        yield found
    sizes = [resolved.micro_batch_size] * (beside_states <= (machine.gpu_bytes or 0))
    if found is None:
        sizes.append(1)  # otherwise a smaller micro batch has been said to be enough here
    for micro in dict.fromkeys(sizes):
        larger = larger_world(run, resolved, machine, micro)
        if larger is not None:
            changed, world = larger
            fitting = any_fits(changed, world, plainest=True)
            assert fitting is not None
            yield (_on(larger, run, resolved), world, *fitting)
            return


def first(tried: list[tuple[str, Run]], machine: Machine) -> Found | None:
    """The first of these under which something fits; each holds less than the one before."""
    low, high = -1, len(tried)
    while high - low > 1:
        # The last first: where it does not help nothing does.
        middle = high - 1 if high == len(tried) else (low + high) // 2
        fitting = any_fits(tried[middle][1], machine)
        if fitting is None and high == len(tried):
            return None
        low, high = (middle, high) if fitting is None else (low, middle)
    best = any_fits(tried[high][1], machine, plainest=True) if tried else None
    return None if best is None else (tried[high][0], machine, *best)


def _on(larger: tuple[Run, Machine], run: Run, resolved: Resolved) -> str:
    """A larger world in words, with what else must be written for it."""
    train = larger[0].train
    written = []
    if train.micro_batch_size != resolved.micro_batch_size:
        written.append(f"train.micro_batch_size={train.micro_batch_size}")
    if strategies.fixed_global_batch(run) and train.global_batch_size != resolved.global_batch_size:
        written.append(f"train.global_batch_size={train.global_batch_size}")
    return " ".join([f"on {larger[1].world_size:,} GPUs", *(["with"] * bool(written)), *written])


def smaller(run: Run, resolved: Resolved, machine: Machine) -> Iterator[tuple[str, Run]]:
    """What a person would change on the same machine, the least first."""
    length = resolved.run.data.sequence_length
    one = strategies.with_batch(run, resolved, micro=1, ranks=machine.world_size)
    alike = [("", run)]
    if strategies.fixes_recompute(run) and resolved.run.train.recompute is None:
        alike.append(("recomputation", strategies.with_recompute(run)))
    if resolved.micro_batch_size > 1:
        alike.append(("train.micro_batch_size=1", one))
        if len(alike) > 2:
            words = "recomputation and train.micro_batch_size=1"
            alike.append((words, strategies.with_recompute(one)))
    yield from ((f"with {words}", changed) for words, changed in alike[1:])
    words, least = alike[-1]
    while (length := length // 2) >= _SHORTEST:
        said = f"{words} and " if words else ""
        yield f"with {said}data.sequence_length={length}", strategies.with_sequence(least, length)


def larger_world(
    run: Run, resolved: Resolved, machine: Machine, micro: int
) -> tuple[Run, Machine] | None:
    """The smallest world of whole nodes on which something fits, at that micro batch."""
    unit = machine.gpus_per_node if machine.world_size >= machine.gpus_per_node else 1

    def at(units: int) -> tuple[Run, Machine]:
        ranks = units * unit
        batched = strategies.with_batch(run, resolved, micro=micro, ranks=ranks)
        return batched, replace(machine, world_size=ranks)

    low, most = machine.world_size // unit, _MOST_RANKS // unit
    high = min(2 * low, most)
    # By doubling: such worlds divide weights evenly, and what they gather is known (gathers.py).
    while not any_fits(*at(high)):
        low, high = high, min(2 * high, most)
        if low == high:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if any_fits(*at(middle)) else (middle, high)
    return at(high)


def any_fits(
    run: Run, machine: Machine, *, plainest: bool = False
) -> tuple[Candidate, Memory] | None:
    """A strategy that fits, of those that hold the least on a device or on a host.

    plainest: the one that offloads and shards the least, and not the one that is found soonest.
    """
    tried = list(strategies.least(run, nvme=machine.nvme_bytes is not None))
    for name, least in tried if plainest else tried[::-1]:
        try:
            resolved = resolve(least, machine.world_size, device=machine.device)
        except ConfigError:
            continue
        if hopeless(resolved, machine):
            continue
        held = memory(resolved, room(machine))
        if headroom(held, machine) >= 0:
            return Candidate(name or strategies.own_name(least, resolved), least, resolved), held
    return None


def hopeless(resolved: Resolved, machine: Machine) -> bool:
    """Whether what is surely held is too much already, so that nothing need be played.

    On a device at the peak: its share of weights, masters and moments, and what each block is
    given, which recomputation keeps too; on a host what is offloaded of the former.
    """
    settings, world = Settings(resolved), resolved.world_size
    sections = resolved.deepspeed.get("activation_checkpointing") or {}
    elsewhere = ("cpu_checkpointing", "partition_activations")
    if any(sections.get(key) for key in elsewhere) or settings.zero.get("zenflow"):
        return False
    if (settings.zero.get("offload_optimizer") or {}).get("ratio", 1.0) < 1.0:
        return False
    total, model = resolved.model.num_parameters, resolved.model
    state_width = settings.moment_width + settings.master_width * (settings.width == 2)
    states = state_width * total // (world if resolved.stage else 1)
    weights = settings.width * total // (world if resolved.stage == 3 else 1)
    inputs = settings.width * settings.tokens * model.hidden_size * model.num_hidden_layers
    device = inputs + states * (resolved.offload_optimizer is None)
    device += weights * (resolved.offload_param is None)
    host = states * (resolved.offload_optimizer == "cpu")
    host += weights * (resolved.offload_param == "cpu")
    capacities = ((device, machine.gpu_bytes), (host * machine.ranks_per_node, machine.host_bytes))
    return any(capacity is not None and least > capacity for least, capacity in capacities)
