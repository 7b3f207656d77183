from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from ds_llama.errors import CallError, ModelError
from ds_llama.evals import generate as generation
from ds_llama.evals.generate import generate
from ds_llama.evals.sampling import Sampling
from ds_llama.model.llama import Llama
from tests.unit.evals.models import small

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama3": {"rope_parameters": LLAMA3},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
}
PROMPT = [1, 17, 42, 9, 80, 33]


def pair(**changes: Any) -> tuple[Llama, transformers.LlamaForCausalLM]:
    ours = small(**changes)
    config = transformers.LlamaConfig(**ours.config.to_hf())
    theirs = transformers.LlamaForCausalLM(config).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


def _by_transformers(
    model: Any, prompts: list[list[int]], tokens: int, eos: int | None = None, **settings: Any
) -> list[list[int]]:
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    out = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
        **settings,
    )
    return [row[longest:] for row in out.tolist()]


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_greedy_equals_transformers_token_for_token(changes: dict[str, Any]) -> None:
    ours, theirs = pair(**changes)
    expected = _by_transformers(theirs, [PROMPT], 80)  # beyond max_position_embeddings
    assert len(set(expected[0])) > 20, "a constant continuation would prove nothing"
    assert generate(ours, [PROMPT], max_new_tokens=80) == expected


def test_sabotaged_weights_write_something_else() -> None:
    ours, theirs = pair()
    expected = _by_transformers(theirs, [PROMPT], 80)
    with torch.no_grad():
        ours.model.layers[0].self_attn.k_proj.weight.mul_(1.05)
    assert generate(ours, [PROMPT], max_new_tokens=80) != expected


def test_sabotaged_positions_write_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the positions, padding at the left shifts the shorter prompts."""
    ours, theirs = pair()
    prompts = [PROMPT, PROMPT[:2]]
    expected = _by_transformers(theirs, prompts, 40)
    assert generate(ours, prompts, max_new_tokens=40) == expected

    def unmasked(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = _left_padded(*args)
        return ids, torch.ones_like(mask)

    _left_padded = generation._left_padded
    monkeypatch.setattr(generation, "_left_padded", unmasked)
    assert generate(ours, prompts, max_new_tokens=40)[1] != expected[1]


def test_a_batch_of_unequal_prompts_is_each_by_itself() -> None:
    ours, theirs = pair(rope_parameters=LLAMA3)
    prompts = [PROMPT, [1], [5, 6, 7, 8, 9, 10, 11, 12, 13], [2, 3]]
    alone = [generate(ours, [prompt], max_new_tokens=30)[0] for prompt in prompts]
    assert generate(ours, prompts, max_new_tokens=30) == alone
    assert _by_transformers(theirs, prompts, 30) == alone


def test_ends_at_eos_each_row_by_itself() -> None:
    ours, theirs = pair()
    prompts = [PROMPT, PROMPT[:3]]
    free = generate(ours, prompts, max_new_tokens=30)
    eos = free[0][4]
    found = generate(ours, prompts, max_new_tokens=30, eos={eos, 10_000})
    for with_eos, without in zip(found, free, strict=True):
        cut = without.index(eos) + 1 if eos in without else len(without)
        assert with_eos == without[:cut]
    padded = _by_transformers(theirs, prompts, 30, eos)
    assert [row[: len(new)] for row, new in zip(padded, found, strict=True)] == found


def test_nothing_is_made_of_nothing() -> None:
    ours, _ = pair()
    assert generate(ours, [PROMPT, PROMPT], max_new_tokens=0) == [[], []]
    assert generate(ours, [], max_new_tokens=5) == []


def test_bfloat16_generates() -> None:
    ours, _ = pair()
    new = generate(ours.bfloat16(), [PROMPT], max_new_tokens=5)
    assert len(new[0]) == 5


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_is_transformers(penalty: float) -> None:
    ours, theirs = pair()
    prompts = [PROMPT, [2, 3], [5, 6, 7, 8, 9, 10, 11, 12, 13]]
    sampling = Sampling(repetition_penalty=penalty)
    found = generate(ours, prompts, max_new_tokens=40, sampling=sampling)
    assert found == _by_transformers(theirs, prompts, 40, repetition_penalty=penalty)
    # the penalty is what was compared
    assert found != generate(ours, prompts, max_new_tokens=40)
    assert found[1] == generate(ours, prompts[1:2], max_new_tokens=40, sampling=sampling)[0]


def test_every_new_token_is_one_pass_over_one_token() -> None:
    ours, _ = pair()
    lengths = []
    ours.model.norm.register_forward_hook(lambda m, i, out: lengths.append(out.shape[1]))
    generate(ours, [PROMPT, PROMPT[:2]], max_new_tokens=10)
    assert lengths == [len(PROMPT)] + [1] * 9


def test_a_callback_hears_every_token_and_ends_texts() -> None:
    ours, _ = pair()
    prompts = [PROMPT, PROMPT[:3]]
    free = generate(ours, prompts, max_new_tokens=12)
    heard: list[list[int]] = [[], []]

    def hear(row: int, token: int) -> bool:
        heard[row].append(token)
        return len(heard[row]) == 4 + 3 * row

    assert generate(ours, prompts, max_new_tokens=12, on_token=hear) == heard
    assert heard == [free[0][:4], free[1][:7]]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_draws_do_not_depend_on_the_batch(batch_size: int) -> None:
    ours, _ = pair()
    prompts = [PROMPT, [2, 3], [1], [1]]
    sampling = Sampling(1.0, seed=3)
    whole = generate(ours, prompts, max_new_tokens=20, sampling=sampling)
    assert whole[2] != whole[3], "a prompt given twice is drawn twice"
    settings = {"max_new_tokens": 20, "sampling": sampling}
    assert generate(ours, prompts, batch_size=batch_size, **settings) == whole
    assert generate(ours, prompts[:2], **settings) == whole[:2]


def test_the_mode_is_left_as_it_was() -> None:
    ours, _ = pair()
    generate(ours.train(), [PROMPT], max_new_tokens=1)
    assert ours.training


def test_weights_that_are_not_finite() -> None:
    ours, _ = pair()
    with torch.no_grad():
        ours.model.norm.weight[3] = torch.nan
    for sampling in (Sampling(), Sampling(1.0, top_k=3, top_p=0.5)):
        with pytest.raises(ModelError, match="after 0 new tokens is not finite") as caught:
            generate(ours, [PROMPT], max_new_tokens=3, sampling=sampling)
        assert caught.value.where == "prompt 1"
        assert "take an earlier checkpoint" in caught.value.remedy


def test_a_seed_gives_the_same_text_and_another_seed_another() -> None:
    ours, _ = pair()
    first, again, other = (
        generate(ours, [PROMPT], max_new_tokens=40, sampling=Sampling(1.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_prompts_that_cannot_be() -> None:
    ours, _ = pair()
    with pytest.raises(CallError, match="a prompt has no tokens"):
        generate(ours, [PROMPT, []], max_new_tokens=1)
    with pytest.raises(CallError, match="max-new-tokens is -1"):
        generate(ours, [PROMPT], max_new_tokens=-1)
    with pytest.raises(CallError, match="batch-size is 0"):
        generate(ours, [PROMPT], max_new_tokens=1, batch_size=0)
    with pytest.raises(ModelError, match="token id 97 is outside the model's vocabulary of 97"):
        generate(ours, [[97]], max_new_tokens=1)
