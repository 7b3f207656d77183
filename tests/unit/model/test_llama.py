"""The model as an engine sees it: ZeRO-3's law, recomputation, ties, compilation, input errors."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from ds_llama.config import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.model.attention import attend
from ds_llama.model.cache import Cache
from ds_llama.model.llama import Llama, LlamaOutput

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 67,
    "initializer_range": 0.2,
}
IDS = torch.randint(0, 67, (2, 70), generator=torch.Generator().manual_seed(0))


def build(**overrides: Any) -> Llama:
    return Llama(LlamaConfig.from_hf({**SMALL, **overrides}), seed=0)


def gradients(model: Llama, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS, **inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# --- ZeRO-3's law ----------------------------------------------------------------------------


def gather_in_own_forward_only(model: nn.Module) -> list[str]:
    """Free every parameter outside its own module's forward; returns who ran, in order."""
    ran: list[str] = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        full = [parameter.data for parameter in own]

        def gather(*_: Any, name: str = name, own: Any = own, full: Any = full) -> None:
            ran.append(name)
            for parameter, data in zip(own, full, strict=True):
                parameter.data = data

        def free(*_: Any, own: Any = own) -> None:
            for parameter in own:
                parameter.data = torch.empty(0)

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(free)
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    return ran


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_read_in_their_own_forward_and_every_module_runs(tied: bool) -> None:
    model = build(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    inputs: list[dict[str, Any]] = [{}, {"labels": IDS}, {"past_key_values": Cache()}]
    with torch.no_grad():
        wanted = model(IDS).logits, model(IDS, labels=IDS).loss
        with_cache = model(IDS, past_key_values=Cache()).logits
        ran = gather_in_own_forward_only(model)
        for keywords in inputs:
            ran.clear()
            out = model(IDS, **keywords)
            if out.loss is None:
                assert torch.equal(out.logits, with_cache if keywords else wanted[0])
            else:
                assert torch.equal(out.loss, wanted[1])
            everything = {n for n, m in model.named_modules() if not isinstance(m, nn.ModuleList)}
            assert set(ran) == everything


def test_twin_a_parameter_read_elsewhere_is_seen() -> None:
    model = build()
    inner = model.model.layers[0].mlp.down_proj
    model.lm_head.register_forward_pre_hook(lambda *_: inner.weight @ torch.ones(48))
    gather_in_own_forward_only(model)
    with pytest.raises(RuntimeError), torch.no_grad():
        model(IDS)


# --- recomputation, compilation, fake tensors ------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_blocks_give_the_same_gradients(reentrant: bool) -> None:
    model = build()
    wanted = gradients(model)
    for block in model.model.layers:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=reentrant)
    assert same(gradients(model), wanted)


# What dynamo itself warns of while it traces.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("part", ["block", "model"])
def test_compiled(part: str) -> None:
    model = build()
    wanted = gradients(model)
    if part == "block":
        for block in model.model.layers:
            block.compile(backend="aot_eager", fullgraph=True)
        got = gradients(model)
    else:
        compiled = torch.compile(model, backend="aot_eager")
        model.zero_grad()
        compiled(IDS, labels=IDS).loss.backward()
        got = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


def test_under_fake_tensors_and_back() -> None:
    model = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        twin = Llama(model.config, init=False)
        ids = torch.zeros(2, 70, dtype=torch.int64)
        twin(ids, labels=ids).loss.backward()
        assert twin.lm_head.weight.grad.shape == (67, 32)
    assert model(IDS, labels=IDS).loss.isfinite()


# --- weights ---------------------------------------------------------------------------------


def test_tied_weights_survive_moves_and_copies() -> None:
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_hf({**SMALL, "tie_word_embeddings": True}))
    for moved in (model.to_empty(device="cpu"), model.bfloat16(), copy.deepcopy(model)):
        assert moved.lm_head.weight is moved.model.embed_tokens.weight
    assert len(list(model.parameters())) == len(list(build().parameters())) - 1


def test_untied_weights_are_two() -> None:
    assert build().lm_head.weight is not build().model.embed_tokens.weight


@pytest.mark.parametrize("size", [{}, {"tie_word_embeddings": True}, {"mlp_bias": True}])
def test_parameter_count_is_the_configs(size: dict[str, Any]) -> None:
    model = build(**size)
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters


# --- forward ---------------------------------------------------------------------------------


def test_output_unpacks_and_a_batch_is_a_dict() -> None:
    model = build()
    out = model(**{"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)})
    assert isinstance(out, LlamaOutput)
    loss, logits, cache = out
    assert loss.dtype == torch.float32
    assert logits is None
    assert cache is None


def test_loss_equals_that_of_the_logits() -> None:
    model = build()
    wanted = nn.functional.cross_entropy(
        model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
    )
    torch.testing.assert_close(model(IDS, labels=IDS).loss, wanted)
    total = model(IDS, labels=IDS, reduction="sum").loss
    torch.testing.assert_close(total, wanted * 2 * 69)


def test_loss_weights_pick_tokens() -> None:
    model = build()
    labels = IDS.clone()
    labels[:, :30] = -100
    weights = (labels != -100).float()
    chosen = model(IDS, labels=IDS, loss_weights=weights).loss
    torch.testing.assert_close(chosen, model(IDS, labels=labels).loss)


def test_logits_of_the_last_tokens_only() -> None:
    model = build()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, logits_to_keep=2).logits, model(IDS).logits[:, -2:])


def test_dropout_acts_in_training_only() -> None:
    model = build(attention_dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(model(IDS).logits, model(IDS).logits)
        model.eval()
        assert torch.equal(model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_fp32(dtype: torch.dtype) -> None:
    model = build(initializer_range=0.05)
    wanted, loss = gradients(model), model(IDS, labels=IDS).loss
    model = model.to(dtype)
    got = gradients(model)
    assert abs(model(IDS, labels=IDS).loss - loss) < 2e-2
    for name, grad in got.items():
        assert grad.dtype == dtype
        error = (grad.float() - wanted[name]).norm() / wanted[name].norm()
        assert error < 0.05, name


def test_autocast_trains() -> None:
    model = build(initializer_range=0.05)
    wanted = gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradients(model)
    for name, grad in got.items():
        assert grad.dtype == torch.float32
        assert (grad - wanted[name]).norm() / wanted[name].norm() < 0.05, name


def test_causal_attention_takes_the_flash_kernel() -> None:
    """Also for grouped heads, and without a dense mask."""
    q, k = torch.randn(2, 4, 70, 8, dtype=torch.bfloat16), torch.randn(2, 2, 70, 8).bfloat16()
    with torch.profiler.profile() as profile:
        attend(q.requires_grad_(), k, k, None).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names


def test_rows_that_may_look_at_nothing_are_finite() -> None:
    model = build()
    mask = torch.ones_like(IDS)
    mask[0] = 0
    mask[1, :10] = 0
    labels = IDS.masked_fill(mask == 0, -100)
    loss = model(IDS, mask, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("keywords", "where", "message"),
    [
        ({"labels": IDS[:, 1:]}, "labels", r"labels has shape \(2, 69\)"),
        ({"position_ids": IDS[:, 1:]}, "position_ids", r"position_ids has shape \(2, 69\)"),
        ({"attention_mask": torch.zeros(2, 69)}, "attention_mask", r"need \(2, 70\)"),
        ({"labels": IDS + 67}, "labels", "outside the vocabulary of 67"),
    ],
)
def test_inputs_that_do_not_fit(keywords: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build()(IDS, **keywords)
    assert caught.value.where == where
    assert caught.value.remedy


@pytest.mark.parametrize(("dtype", "grouped"), [(torch.float32, False), (torch.bfloat16, True)])
def test_grouped_heads_off_the_cpu_stay_grouped_in_half_precision_only(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, grouped: bool
) -> None:
    """In fp32 CUDA has no fused kernel for them, and the fallback holds T x S scores."""
    asked = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        asked.append(kwargs["enable_gqa"])
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    q, kv = (torch.empty(2, heads, 8, 16, dtype=dtype, device="meta") for heads in (4, 2))
    assert attend(q, kv, kv, None).shape == q.shape
    assert asked == [grouped]
