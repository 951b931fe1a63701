"""Runs of the real configuration in this process, on real digits."""

from __future__ import annotations

import csv

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from clbench.config.hashing import config_hash
from clbench.config.options import conf_dir, options_of
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.metrics.extra import RESERVED
from clbench.metrics.registry import BUILT_IN, summarize
from clbench.runs.folder import RunFolder, is_finished
from clbench.training.checkpointing import Checkpoints
from clbench.training.early_stopping import EarlyStopping
from clbench.training.measures import LOSS, TERMS, measured
from tests.conftest import others_slow, stopped_after, trainer
from tests.data.test_presets import OFFLINE, OWN, TARGETS

SHORT = ("epochs=1", "data.tasks=3", "net.hidden=[32]")
GROUPS = ("strategy", "scenario", "net", "optimizer", "scheduler", "trainer", "logger", "data")
STRATEGIES = sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))


def choices(group):
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def same_checkpoint(a, b):
    """Return whether two checkpoints are bit-identical except for seconds."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_checkpoint(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_checkpoint(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)  # nan, where a metric is undefined


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("strategy", ["nccl", "independent"])
def test_the_parameter_count_leaves_out_those_of_a_strategy(run, strategy):
    runs = [run("data.tasks=2", "steps=2", f"strategy={name}", folder=name) for name in ("finetune", strategy)]
    assert runs[0]["net"]["parameters"] == runs[1]["net"]["parameters"]


def test_a_run_writes_every_documented_file(run, tmp_path):
    result = run(*SHORT, "strategy=ewc", "lam=1e5", "samples=100")
    folder = tmp_path / "run"
    for name in (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "metrics.json", "train.log"):
        assert (folder / name).stat().st_size > 0
    for name in ("accuracy_matrix.png", "accuracy_over_tasks.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader((folder / "accuracy_matrix.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["after_task_index", "task_index_0", "task_index_1", "task_index_2"]
    assert [[float(a) for a in row[1:]] for row in rows[1:]] == result["accuracy_matrix"]
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == [f"task_{t}.ckpt" for t in range(3)]
    assert OmegaConf.load(folder / ".hydra/config.yaml").lam == 1e5
    assert "task 3/3" in (folder / "train.log").read_text(encoding="utf-8")
    assert not list(folder.rglob("*.part"))


def test_metrics_json_is_the_documented_contract(run):
    result = run(*SHORT, "strategy=ewc", "samples=100")
    r, b = (torch.tensor(result[key], dtype=torch.double) for key in ("accuracy_matrix", "initial_accuracy"))
    assert r.shape == (3, 3)
    computed = summarize(BUILT_IN, r, b)
    assert {key: result[key] for key in computed} == computed
    assert result["extra_metrics"] == {}
    assert result.keys() <= RESERVED | BUILT_IN.keys(), "the name of a custom metric may not be a key"
    assert result["forward_transfer"] is None
    assert [task["accuracy"] for task in result["per_task"]] == result["accuracy_matrix"][-1]
    assert all(task["nll"] > 0 and 0 <= task["ece"] <= 1 for task in result["per_task"])
    assert 0 < result["validation"]["average_accuracy"] <= 1
    seconds = result["seconds"]
    assert set(seconds) == {"train", "importance", "evaluation", "shared", "total"}
    assert seconds["shared"] == 0
    assert result["shared_first_task"] is None
    assert 0 < seconds["train"] + seconds["importance"] + seconds["evaluation"] <= seconds["total"]
    parameters = result["net"]["parameters"]
    totals = [task.pop("total") for task in result["importance"]]
    assert 0 < totals[0] < totals[1] < totals[2]
    assert result["importance"] == [{"examples": 100, "bytes": 2 * 4 * parameters}] * 3
    options = {
        "name": "ewc",
        "lam": 1e3,
        "fisher": "exact",
        "samples": 100,
        "fisher_batch": 1,
        "label_samples": 1,
        "exclude": None,
    }
    assert result["strategy"].items() >= options.items()
    assert result["data"]["name"] == "permuted_digits"
    assert result["data"]["scenario"] == "task"
    assert result["seed"] == 0
    assert result["status"] == "complete"
    assert len(result["config_hash"]) == 16
    assert {"python", "torch", "lightning", "clbench"} <= set(result["versions"])


def test_the_scenario_decides_if_forward_transfer_is_defined(run):
    """The same is true of the initial accuracy."""
    domain = run(*SHORT, "scenario=domain", "strategy=finetune", folder="domain")
    assert domain["forward_transfer"] is not None
    class_ = run(*SHORT, "scenario=class", "strategy=finetune", folder="class")
    assert class_["initial_accuracy"] == [None] * 3
    assert class_["forward_transfer"] is None
    assert class_["accuracy_matrix"][0][1:] == [0.0, 0.0]  # classes that were not seen yet do not compete


def test_the_same_seed_gives_the_same_r_bit_for_bit(run, tmp_path):
    """Another seed gives another accuracy matrix."""
    options = (*SHORT, "strategy=ewc", "fisher=sample", "net.dropout=0.3")
    a, b, c = run(*options, folder="a"), run(*options, folder="b"), run(*options, "seed=1", folder="c")
    assert a["accuracy_matrix"] == b["accuracy_matrix"] != c["accuracy_matrix"]
    assert same_checkpoint(load(tmp_path / "a/checkpoints/task_2.ckpt"), load(tmp_path / "b/checkpoints/task_2.ckpt"))


def test_strategies_of_one_seed_start_from_the_same_net_and_data(run):
    a, b = run(*SHORT, "strategy=ewc", folder="a"), run(*SHORT, "strategy=finetune", folder="b")
    assert a["accuracy_matrix"][0] == b["accuracy_matrix"][0]
    assert a["accuracy_matrix"] != b["accuracy_matrix"]


@pytest.mark.slow
def test_lam_0_is_fine_tuning_bit_for_bit(run):
    options = (*SHORT, "optimizer.reset=false")
    plain = run(*options, "strategy=finetune", folder="plain")
    for name in ("ewc", "online_ewc", "mas", "l2", "si", "lwf"):
        assert run(*options, f"strategy={name}", "lam=0", folder=name)["accuracy_matrix"] == plain["accuracy_matrix"]


@pytest.mark.parametrize("strategy", others_slow(STRATEGIES, "ewc", "derpp"))
def test_a_run_stopped_after_a_task_resumes_bit_identical(run, tmp_path, strategy):
    options = (*SHORT, f"strategy={strategy}", "net.dropout=0.3", "optimizer.reset=false", "net.batch_norm=true")
    if strategy == "gpm":
        options += ("bn=freeze_after_first",)  # it refuses statistics that change after the first task
    whole = run(*options, folder="whole")
    for task in (0, 1):
        again = stopped_after(task, tmp_path / "whole", tmp_path / f"again_{task}")
        resumed = run(*options, folder=again.name)
        assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
        assert resumed["per_task"] == whole["per_task"]
        last = "checkpoints/task_2.ckpt"
        assert same_checkpoint(load(again / last), load(tmp_path / "whole" / last))


@pytest.mark.parametrize("strategy", ["finetune", "er", "lwf", "nccl"])
def test_a_single_class_is_right_and_an_unseen_class_is_wrong(run, strategy):
    cut = ("data=split_digits", "scenario=class", "data.tasks=null", "data.split.classes_per_task=[1,1,8]")
    r = run(*cut, "net.hidden=[16]", "epochs=1", f"strategy={strategy}")["accuracy_matrix"]
    assert r[0] == [1, 0, 0] and r[1][2] == 0


def test_joint_training_stops_early_on_all_its_validation_data(composed):
    """The validation data are those of all tasks that it learns."""
    cfg = composed("strategy=joint", *SHORT)
    sequence, learner, strategy = build(cfg)
    seen = []
    for index in (0, 1):
        task, validation = strategy.training_data(sequence, index), EarlyStopping(patience=3)
        t = trainer([validation])
        t.fit(learner, datamodule=task)
        sums = sum(measure.sums for measure in measured(learner, task.val_dataloader()[: index + 1]))
        seen.append(validation.best == pytest.approx((sums[LOSS] / sums[TERMS]).item()))
    assert all(seen)


def test_a_complete_run_is_not_trained_again(run, tmp_path):
    first = run(*SHORT, "strategy=finetune")
    assert run(*SHORT, "strategy=finetune") == first


def test_the_folder_of_another_run_is_refused_and_left_as_it_was(run, tmp_path):
    run(*SHORT, "strategy=finetune")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    message = (
        r"another run \(strategy finetune, seed 0.*or remove it. Differences \(stored and new\): lam null and 1000.0"
    )
    with pytest.raises(ConfigError, match=message):
        run(*SHORT, "strategy=ewc")
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("keep", "left"), [("last", ["task_2.ckpt"]), ("none", [])])
def test_checkpoints_are_kept_as_configured(run, tmp_path, keep, left):
    run(*SHORT, "strategy=finetune", f"checkpoints={keep}")
    assert [file.name for file in (tmp_path / "run").glob("checkpoints/*")] == left


def test_the_config_hash_depends_only_on_what_decides_results(composed):
    def hashed(*overrides):
        cfg = composed(*overrides).copy()
        choices = cfg.hydra.runtime.choices
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        return config_hash(cfg, choices)

    same = {
        hashed(),
        hashed("output_dir=elsewhere"),
        hashed("data_dir=/data"),
        hashed("lam=1000"),
        hashed("threads=2"),
        hashed("logger=none"),
        hashed("data.workers=1"),
    }
    assert len(same) == 1
    assert (
        len({hashed(), hashed("lam=1"), hashed("seed=1"), hashed("net.hidden=[10]"), hashed("trainer.precision=64")})
        == 5
    )


def test_batch_norm_is_frozen_after_the_first_task_or_not(run, tmp_path):
    def running_means(bn):
        run(*SHORT, "strategy=finetune", "net=mlp_bn", "net.hidden=[16]", f"bn={bn}", folder=bn)
        states = [load(tmp_path / bn / f"checkpoints/task_{t}.ckpt")["learner"] for t in (0, 2)]
        return [next(v for k, v in state.items() if k.endswith("running_mean")) for state in states]

    first, last = running_means("freeze_after_first")
    assert torch.equal(first, last)
    first, last = running_means("train")
    assert not torch.equal(first, last)


@pytest.mark.slow
def test_joint_remembers_what_fine_tuning_forgets(run):
    options = ("data.tasks=3", "epochs=5")
    joint, plain = run(*options, "strategy=joint", folder="j"), run(*options, "strategy=finetune", folder="f")
    assert joint["average_accuracy"] > plain["average_accuracy"] + 0.1


@pytest.mark.slow
def test_ewc_at_1e5_beats_fine_tuning_by_3_points(run):
    """The data are the default data, with three seeds."""

    def mean_of_3_seeds(*options):
        runs = [run(*options, f"seed={seed}", folder=options[0].replace("=", "_") + str(seed)) for seed in range(3)]
        return sum(result["average_accuracy"] for result in runs) / 3

    assert mean_of_3_seeds("strategy=ewc", "lam=1e5") >= mean_of_3_seeds("strategy=finetune") + 0.03


EVERY_CHOICE = [(group, choice) for group in GROUPS for choice in choices(group)]


@pytest.mark.parametrize(("group", "choice"), EVERY_CHOICE)
def test_every_yaml_composes(composed, group, choice):
    composed(f"{group}={choice}")


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        pytest.param(group, choice, marks=[] if group == "strategy" or choice in ("mlp", "cnn") else pytest.mark.slow)
        for group, choice in EVERY_CHOICE
        if (group, choice) not in {("trainer", "gpu"), ("trainer", "ddp")}  # see tests/training/test_processes.py
        and (group, choice) not in {("net", "fcn"), ("net", "gpt_small"), ("net", "hf")}  # see tests/nets
        and not (group == "data" and choice not in OFFLINE)  # see test_every_data_set_runs_a_batch
    ],
)
def test_every_yaml_runs_a_batch(run, group, choice):
    last = [] if group == "trainer" else ["+trainer.limit_train_batches=1"]
    last += ["samples=2"] if group == "net" else []
    assert is_finished(run(f"{group}={choice}", "epochs=1", "data.tasks=2", *last))


def replaced_source(cfg):
    """Return overrides that replace data sets like CIFAR, which are not available, with noise."""
    target = cfg.data.source.get("_target_", "") if isinstance(cfg.data.source, DictConfig) else ""
    if "CIFAR" not in target and "TinyImageNet" not in target:
        return []
    return [f"data.source._target_=tests.stand_ins.{'TenClasses' if target.endswith('CIFAR10') else 'HundredClasses'}"]


@pytest.mark.slow
@pytest.mark.parametrize("data", [d for d in choices("data") if d not in (*OFFLINE, *OWN, *TARGETS)])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_every_data_set_runs_a_batch(run, composed, real_data, data, scenario):
    short = ("epochs=1", "data.tasks=2", "+trainer.limit_train_batches=1", "samples=20")
    cfg = composed(f"data={data}")
    options = (f"data={data}", f"scenario={scenario}", *short, f"data_dir={real_data}", *replaced_source(cfg))
    assert is_finished(run(*options))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_runs_a_batch(run, composed, real_data, experiment):
    cfg = composed(f"experiment={experiment}")
    short = ("epochs=1", "+trainer.limit_train_batches=1", f"data_dir={real_data}", "data.tasks=2")
    few = [f"{name}=4" for name in options_of(cfg) if name == "samples"] + ["steps=1"] * (cfg.steps is not None)
    assert is_finished(run(f"experiment={experiment}", *short, *few, *replaced_source(cfg)))


def test_the_data_of_a_run_does_not_depend_on_the_strategy(composed):
    a, b = (build(composed(f"strategy={s}"))[0] for s in ("finetune", "ewc"))
    for x, y in zip(a[1].train_dataloader(), b[1].train_dataloader(), strict=True):
        assert torch.equal(x.x, y.x)


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    run(*SHORT, "strategy=finetune")
    (tmp_path / "run/metrics.json").unlink()
    with pytest.raises(ConfigError, match="another run"):
        Checkpoints(RunFolder(tmp_path / "run", "00000000")).load()
