from __future__ import annotations

import pytest

from ds_llama.config import LlamaConfig, load_run, preset
from ds_llama.config.optimizer import AdamW
from ds_llama.config.resolve import resolve
from ds_llama.errors import CallError, ConfigErrors


def errors(source, *overrides):
    with pytest.raises(ConfigErrors) as caught:
        load_run(source, *overrides)
    assert caught.value.exit_code == 1
    return {error.where: error for error in caught.value.errors}


def refusal(source, *overrides):
    with pytest.raises(CallError) as caught:
        load_run(source, *overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_all_but_model_and_data_has_a_default(tree, write):
    run = load_run(write("first.json", tree))
    assert run.output == "runs/first"
    assert run.path.name == "first.json"
    assert run.optimizer is None
    assert run.deepspeed["zero_optimization"] == {"stage": 2}
    assert run.checkpoint.keep_last == 3
    assert run.architecture == preset("tiny")
    assert load_run(tree).output == "runs/run"


def test_every_problem_of_run_model_and_deepspeed_at_once(tree, write):
    write("zero.json", {"zero_optimisation": {"stage": 2}})
    tree |= {
        "model": {"preset": "tiny", "hiden_size": 3},
        "train": {"step": 3, "seed": "x"},
        "tracking": {"wandb": {"mode": "of-line", "api_key": "x"}},
        "deepspeed": "zero.json",
    }
    path = write("run.json", tree)
    found = errors(path)
    assert set(found) == {
        f"{path}:model.hiden_size",
        f"{path}:train.step",
        f"{path}:train.seed",
        f"{path}:tracking.wandb.mode",
        f"{path}:tracking.wandb.api_key",
        f"{path.parent}/zero.json:zero_optimisation",
    }
    assert found[f"{path}:train.step"].remedy == "did you mean 'steps'?"
    assert found[f"{path}:model.hiden_size"].remedy == "did you mean 'hidden_size'?"
    assert found[f"{path}:train.seed"].what == "'x': input should be a valid integer"
    assert "'offline'" in found[f"{path}:tracking.wandb.mode"].remedy
    unknown = found[f"{path.parent}/zero.json:zero_optimisation"]
    assert unknown.remedy == "did you mean 'zero_optimization'?"


def test_missing_sections_are_named():
    found = errors({})
    assert found["run:data"].what == "'data' is missing"
    assert "preset" in found["run:model"].remedy


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ([], "[]: the list is empty"),
        (3, "3: input should be a valid string"),
        ([{"path": "a", "weight": 0}], "greater than 0"),
        (["a", {"path": "b", "wieght": 2}], "unknown key 'wieght'"),
        ("", "at least 1 character"),
        (None, "null"),
    ],
)
def test_data_train_that_names_no_shards(tree, train, what):
    tree["data"]["train"] = train
    ((where, error),) = errors(tree).items()
    assert what in error.what
    assert where.startswith("run:data.train")


def test_data_train_may_be_a_weighted_list(tree):
    tree["data"]["train"] = ["a", {"path": "b", "weight": 2}]
    run = load_run(tree, "data.train.1.weight=3")
    assert [(c.path, c.weight) for c in run.data.train] == [("a", 1.0), ("b", 3.0)]
    assert load_run(run.model_dump(mode="json")).data == run.data


# --- the model section


def test_a_preset_with_keys_over_it(tree):
    tree["model"] |= {"num_hidden_layers": 3, "rope_theta": 5e5}
    config = load_run(tree).architecture
    assert config.num_hidden_layers == 3
    assert config.rope_parameters.rope_theta == 5e5


def test_head_dim_follows_when_the_preset_does_not_say_it(tree):
    assert load_run(tree, "model.hidden_size=128").architecture.head_dim == 32


def test_rope_keys_go_over_a_preset_one_by_one(tree):
    tree["model"] = {"preset": "llama-3.2-1b"}
    rope = load_run(tree, "model.rope_parameters.factor=4").architecture.rope_parameters
    assert (rope.factor, rope.rope_type, rope.high_freq_factor) == (4, "llama3", 4.0)
    other = 'model.rope_parameters={"rope_type":"linear","factor":2}'
    rope = load_run(tree, other).architecture.rope_parameters
    assert rope.to_hf() == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    old = 'model.rope_scaling={"type":"dynamic","factor":2}'
    assert load_run(tree, old).architecture.rope_parameters.rope_type == "dynamic"


def test_a_rope_key_that_the_type_does_not_use_is_an_error(tree):
    (error,) = errors(tree, "model.rope_parameters.factor=4").values()
    assert error.what == "rope_type 'default' has no 'factor'"
    assert error.where == "command line: model.rope_parameters.factor"


def test_a_config_json_relative_to_the_run_file(tree, write):
    write("models/config.json", {**preset("tiny").to_hf(), "auto_map": {}})
    tree["model"] = {"config": "models/config.json"}
    path = write("run.json", tree)
    assert load_run(path).architecture == preset("tiny")
    assert load_run(path, "model.config=models").architecture == preset("tiny")
    assert load_run(path, "model.num_hidden_layers=5").architecture.num_hidden_layers == 5
    assert "no such file" in refusal(path, "model.config=nowhere.json").what


def test_a_config_json_of_another_model_names_its_file(tree, write):
    other = write("config.json", {"model_type": "mistral"})
    tree["model"] = {"config": "config.json"}
    assert f"{other}:model_type" in errors(write("run.json", tree))


def test_inline_models_are_strict(tree):
    keys = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 256}
    tree["model"] = keys
    assert load_run(tree).architecture == LlamaConfig(**keys)
    tree["model"] = {"config": keys}
    assert load_run(tree).architecture == LlamaConfig(**keys)
    tree["model"] = {**keys, "auto_map": {}}
    assert set(errors(tree)) == {"run:model.auto_map"}
    tree["model"] = {**keys, "num_key_value_heads": 3}
    assert set(errors(tree)) == {"run:model.num_key_value_heads"}


def test_pretrained_here_and_on_the_hub(tree, write):
    folder = write("weights/config.json", preset("tiny").to_hf()).parent
    tree["model"] = {"pretrained": str(folder)}
    run = load_run(tree)
    assert run.architecture == preset("tiny")
    assert run.model.pretrained == str(folder)
    tree["model"] = {"pretrained": "meta-llama/Llama-3.2-1B"}
    assert load_run(tree).architecture is None


def test_a_pretrained_vocabulary_may_grow(tree, write):
    folder = write("weights/config.json", preset("tiny").to_hf()).parent
    size = preset("tiny").vocab_size
    tree["model"] = {"pretrained": str(folder), "vocab_size": size + 8}
    run = load_run(tree)
    assert run.architecture == preset("tiny").model_copy(update={"vocab_size": size + 8})
    assert load_run(run.model_dump(mode="json")).architecture == run.architecture
    for wrong, what in ((size - 1, f"and the pretrained weights have {size} rows"), (0, "0: ")):
        tree["model"]["vocab_size"] = wrong
        assert what in errors(tree)["run:model.vocab_size"].what


@pytest.mark.parametrize(
    ("model", "where", "what"),
    [
        ({"preset": "tiny", "pretrained": "x"}, "model", "'preset' and 'pretrained' together"),
        ({"pretrained": "x", "head_dim": 3}, "model.head_dim", "their own architecture"),
        ({"preset": "tyni"}, "model.preset", "no preset is called 'tyni'"),
        ({"preset": 3}, "model.preset", "preset is 3, not a string"),
        ({"preset": "tiny", "vocab_size": 0}, "model.vocab_size", "0: input should be greater"),
        ({}, "model", "the run names no model"),
        ("tiny", "model", "the run names no model"),
    ],
)
def test_model_sections_that_make_no_sense(tree, model, where, what):
    tree["model"] = model
    assert what in errors(tree)[f"run:{where}"].what


# --- the DeepSpeed JSON


def test_deepspeed_by_name_path_and_inline(tree, write):
    write("mine.json", {"zero_optimization": {"stage": 1}})
    for value, stage in (("zero3", 3), ("mine.json", 1), ({"zero_optimization": {"stage": 0}}, 0)):
        tree["deepspeed"] = value
        run = load_run(write("run.json", tree))
        assert run.deepspeed["zero_optimization"]["stage"] == stage
    assert run.deepspeed_path == f"{run.path}:deepspeed"
    tree["deepspeed"] = "mine.json"
    path = write("run.json", tree)
    assert load_run(path).deepspeed_path == str(path.parent / "mine.json")


def test_deepspeed_that_is_not_there(tree, write):
    tree["deepspeed"] = "zero22"
    error = refusal(tree)
    assert error.where == "run:deepspeed"
    assert error.remedy == "did you mean 'zero2'? (or the path of a .json file)"
    tree["deepspeed"] = "gone.json"
    assert "no such file" in refusal(write("run.json", tree)).what
    tree["deepspeed"] = 3
    assert "run:deepspeed" in errors(tree)


def test_overrides_reach_into_a_deepspeed_file(tree):
    run = load_run(
        tree, "deepspeed=zero3", "deepspeed.zero_optimization.offload_optimizer.device=cpu"
    )
    assert run.deepspeed["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
    }
    assert load_run(tree, "deepspeed.bf16=null").deepspeed["bf16"] is None


def test_two_optimizers_are_an_error(tree):
    tree |= {
        "optimizer": {"lr": 1e-3},
        "deepspeed": {
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            "scheduler": {"type": "WarmupLR", "params": {}},
        },
    }
    with pytest.raises(ConfigErrors) as caught:
        load_run(tree)
    assert [error.where for error in caught.value.errors] == ["run:optimizer"] * 2
    assert "scheduler in its DeepSpeed JSON: one would silently win" in str(caught.value)
    del tree["optimizer"]
    assert load_run(tree).optimizer is None
    del tree["deepspeed"]["optimizer"]
    assert "no optimizer that it could drive" in errors(tree)["run:deepspeed.scheduler"].what


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["train.steps=10", "train.epochs=2"], "train.epochs", "both say how long to train"),
        (["optimizer.decay_steps=3"], "optimizer.decay_steps", "does nothing in the schedule"),
        (
            ["optimizer.type=Lion", "train.reproducible=true"],
            "optimizer.type",
            "Lion has not been shown to give equal bits",
        ),
        (
            [
                'optimizer.groups=[{"parameters": ["*"], "gradient_clipping": 1.0}]',
                "train.reproducible=true",
            ],
            "optimizer.groups",
            "the norms of groups are summed in the order of the ranks' partitions",
        ),
        (
            ["train.global_batch_size=10", "train.micro_batch_size=4"],
            "train.global_batch_size",
            "(10) is not a multiple of train.micro_batch_size (4)",
        ),
        (
            ["optimizer.plateau={}"],
            "optimizer.plateau",
            "plateau does nothing in the schedule 'cosine'",
        ),
        (
            ["optimizer.schedule=plateau", "optimizer.decay_steps=3"],
            "optimizer.decay_steps",
            "does nothing in the schedule 'plateau'",
        ),
        (
            ["optimizer.schedule=plateau", "evaluation.every_steps=5"],
            "optimizer.schedule",
            "the plateau schedule looks at the validation loss, and data.validation is not given",
        ),
        (
            ["optimizer.schedule=plateau", "data.validation=x"],
            "optimizer.schedule",
            "and evaluation.every_steps is not given",
        ),
        (
            ["evaluation.early_stopping={}", "data.validation=x"],
            "evaluation.early_stopping",
            "early_stopping looks at the validation loss, and evaluation.every_steps is not given",
        ),
        (
            ["ema.evaluate=true"],
            "ema.evaluate",
            "ema.evaluate looks at the validation loss, and data.validation is not given",
        ),
    ],
)
def test_contradictions_within_a_run(tree, overrides, where, what):
    found = errors(tree, *overrides)
    assert what in found[f"command line: {where}"].what


def test_what_looks_at_a_validation_loss_that_is_there(tree):
    given = ["data.validation=x", "evaluation.every_steps=5", "evaluation.early_stopping={}"]
    run = load_run(tree, *given, "optimizer.schedule=plateau", "ema.evaluate=true")
    assert run.evaluation.early_stopping.model_dump() == {"patience": 3, "min_delta": 0.0}
    assert run.ema.model_dump() == {"decay": 0.999, "evaluate": True, "export": False}
    resolved = resolve(run, 1).to_json()
    expected = {"factor": 0.5, "patience": 2, "threshold": 1e-4, "cooldown": 0}
    assert resolved["optimizer"]["plateau"] == expected
    assert load_run(tree, "ema.evaluate=true", "data.validation=x").ema.evaluate  # at the end


def test_a_trial_that_ends_within_its_warm_up_is_a_warning(tree):
    run = load_run(tree, "optimizer.warmup_steps=11", "train.steps=10")
    [problem] = resolve(run, 1).problems
    assert (problem.severity, problem.key) == ("warning", "optimizer.warmup_steps")
    assert problem.message == "warmup_steps (11) is more than train.steps (10)"


# --- overrides


def test_an_override_makes_the_section_that_is_null(tree):
    tree["optimizer"] = None
    run = load_run(tree, "optimizer.lr=1e-3", "tracking.wandb.mode=offline")
    assert run.optimizer == AdamW(lr=1e-3)
    assert run.tracking.wandb.mode == "offline"
    assert run.tracking.wandb.project == "ds-llama"


def test_a_wrong_value_is_placed_on_the_command_line(tree, write):
    path = write("run.json", tree)
    found = errors(
        path, "train.steps=ten", "deepspeed.zero_optimization.stage=4", "model.vocab_size=-1"
    )
    assert set(found) == {
        "command line: train.steps",
        "command line: deepspeed.zero_optimization.stage",
        "command line: model.vocab_size",
    }
    assert found["command line: train.steps"].what == "'ten': input should be a valid integer"


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("train.step=3", "unknown key 'step' in 'train'", "did you mean 'steps'?"),
        ("trian.steps=3", "unknown key 'trian'", "did you mean 'train'?"),
        ("train.steps.x=3", "'train.steps' holds a value", "write train.steps=VALUE"),
        (
            "deepspeed.zero_optimisation.stage=3",
            "unknown key 'zero_optimisation' in 'deepspeed'",
            "did you mean 'zero_optimization'?",
        ),
        (
            "deepspeed.zero_optimization.stag=3",
            "unknown key 'stag' in 'deepspeed.zero_optimization'",
            "did you mean 'stage'?",
        ),
        (
            "model.hiden_size=3",
            "unknown key 'hiden_size' in 'model'",
            "did you mean 'hidden_size'?",
        ),
        (
            "model.rope_parameters.factr=3",
            "unknown key 'factr' in 'model.rope_parameters'",
            "did you mean 'factor'?",
        ),
        (
            "model.vocab_size.x=3",
            "'model.vocab_size' holds a value",
            "write model.vocab_size=VALUE",
        ),
        ("model.config.hiden_size=3", "unknown key 'hiden_size'", "did you mean 'hidden_size'?"),
        ("train.steps", "'train.steps' is not an override", "write key.path=value"),
        ("=3", "'=3' is not an override", "write key.path=value"),
        ("train..steps=3", "is not an override", "write key.path=value"),
        ("data.train.0.weight=2", "is 'shards/train' and has no '0'", "the whole of it as JSON"),
        ("optimizer.betas.0=0.9", "there is no list to take entry 0 of", "write the whole list"),
    ],
)
def test_an_unknown_path_is_a_wrong_call(tree, override, what, remedy):
    error = refusal(tree, override)
    assert what in error.what
    assert remedy in error.remedy
    assert error.where.startswith("command line")


def test_a_list_entry_that_is_not_there(tree):
    tree["data"]["train"] = [{"path": "a"}]
    assert "the list has 1 entries" in refusal(tree, "data.train.1.weight=2").what
    assert refusal(tree, "data.train.x=2").where == "command line: data.train.x"
