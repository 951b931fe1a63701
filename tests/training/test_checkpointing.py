"""A run that is interrupted inside a task resumes bit-identically from its mid-task checkpoint."""

from __future__ import annotations

import json
from functools import partial

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clbench.config.options import budget, conf_dir
from clbench.errors import ConfigError
from clbench.experiment.build import build
from clbench.runs.folder import RunFolder
from clbench.strategies import EWC, MAS, SI
from clbench.training.loop import LoopOptions, TaskLoop
from tests.conftest import others_slow, trainer
from tests.test_train import same_checkpoint

STRATEGIES = sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))
TINY = ("data.tasks=2", "data.examples_per_task=70", "net.hidden=[12]", "net.dropout=0.3", "trainer=cpu")
SIZES = ("epochs=3", "batch_size=16")  # 5 steps per epoch; must follow the strategy, which may set other defaults


class Stopped(Exception):
    pass


class Stop(L.Callback):
    """Interrupt the training directly after a step of a task."""

    def __init__(self, task: int, step: int) -> None:
        self.at = (task, step)

    def on_train_batch_end(self, trainer, *_):
        if (trainer.datamodule.index, trainer.global_step) == self.at:
            raise Stopped


@pytest.fixture
def learn(composed, tmp_path):
    """``learn("strategy=si", folder="a", stop=(1, 7))`` trains a run without plots and returns results and last checkpoint."""
    configurations = {}

    def go(*overrides, folder, stop=(-1, -1), hashed="abc", save_every=None):
        cfg = configurations.setdefault(overrides, None) or composed(*TINY, *SIZES, *overrides)
        configurations[overrides] = cfg
        sequence, learner, strategy = build(cfg)

        def make_trainer(index, callbacks):
            make = instantiate(cfg.trainer, _partial_=True)
            return make(callbacks=[*callbacks, Stop(*stop)], **budget(cfg, index, len(sequence)))

        run_folder = RunFolder(tmp_path / folder, hashed, cfg.checkpoints)
        stopping = {"patience": cfg.patience, "consolidate": cfg.consolidate}
        options = LoopOptions(cfg.seed, **stopping, eval_every=cfg.eval_every, save_every=save_every)
        loop = TaskLoop(sequence, learner, strategy, run_folder, options)
        loop.resume()
        for index in loop.remaining:
            loop.train_task(index, make_trainer)
            loop.save(index)
        return loop.results(), torch.load(tmp_path / folder / "checkpoints/task_1.ckpt", weights_only=True)

    return go


def inside(folder):
    return sorted(file.name for file in folder.rglob("mid_task_*"))


MORE = {
    "mas online": ["strategy=mas", "strategy.online=true"],
    "mas every": ["strategy=mas", "strategy.every=4", "data.blur=0.1"],
    "ewc plateau": [
        "strategy=online_ewc",
        "strategy.every={_target_:clbench.strategies.Plateau,mean:2.0,deviation:1.0}",
    ],
    "er blur": ["strategy=er", "data.blur=0.1"],
    "nccl task": ["strategy=nccl", *SIZES, "strategy.anchor=task"],
    "er ring": ["strategy=er", "strategy.buffer=ring"],
    "er balanced": ["strategy=er", "strategy.memory_balance=class", "memory=5"],
    "derpp end": ["strategy=derpp", "strategy.memory_fill=end", "memory=5"],
    "derpp class": ["strategy=derpp", "scenario=class"],
    "icarl class": ["strategy=icarl", "scenario=class"],
    "fresh noise": ["strategy=shrink_perturb", "strategy.noise=fresh"],
    "lwf class": ["strategy=lwf", "scenario=class"],
    "steps": ["strategy=ewc", "steps=14"],
    "augment": ["strategy=joint", "data.augment={_target_:clbench.data.augment.RandomCrop,padding:1}"],
    "best": ["strategy=si", "consolidate=best", "patience=2", "lr=0.3"],
    "evaluated": ["strategy=ewc", "eval_every=4"],
    "scheduler": ["strategy=er", "scheduler=cosine", "optimizer=sgd", "optimizer.reset=false"],
    "moments": ["strategy=si", "optimizer.reset=moments"],
    "batch norm": ["strategy=ewc", "net.batch_norm=true", "optimizer.reset=false"],
    "accumulation": ["strategy=si", "+trainer.accumulate_grad_batches=2", "epochs=6"],
}
RUNS = {name: [f"strategy={name}", *SIZES] for name in STRATEGIES} | MORE


@pytest.mark.parametrize("name", others_slow(RUNS, "ewc", "er ring", "best", "mas every", "ewc plateau", "er blur"))
def test_a_run_stopped_inside_a_task_resumes_bit_identical(learn, tmp_path, name):
    results, last = learn(*RUNS[name], folder="whole")
    for stop in ((0, 8), (1, 10)):  # in the middle of the second epoch, and at its end
        with pytest.raises(Stopped):
            learn(*RUNS[name], folder="stopped", stop=stop, save_every=3)
        assert inside(tmp_path / "stopped") == [f"mid_task_{stop[0]}.ckpt"]
    again, same = learn(*RUNS[name], folder="stopped", save_every=3)
    assert results.pop("seconds")["train"] > 0 < again.pop("seconds")["train"]
    assert json.dumps(results) == json.dumps(again)
    assert same_checkpoint(last, same)
    assert inside(tmp_path / "stopped") == []


@pytest.mark.parametrize("save_every", [5, 6])
def test_a_checkpoint_due_at_the_end_of_an_epoch_is_a_step_later(learn, tmp_path, save_every):
    with pytest.raises(Stopped):
        learn("strategy=finetune", folder="a", stop=(0, 8), save_every=save_every)
    assert torch.load(tmp_path / "a/checkpoints/mid_task_0.ckpt", weights_only=True)["global_step"] == 6


def test_a_resumed_task_counts_from_its_checkpoint_to_the_next(learn, tmp_path):
    for stop in (8, 11):
        with pytest.raises(Stopped):
            learn("strategy=finetune", folder="a", stop=(0, stop), save_every=6)
        assert torch.load(tmp_path / "a/checkpoints/mid_task_0.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize(("option", "step"), [("epochs=1", 5), ("steps=7", 7)])
def test_no_checkpoint_is_written_after_the_last_step_of_a_task(learn, tmp_path, option, step):
    with pytest.raises(Stopped):
        learn("strategy=finetune", option, folder="a", stop=(0, step), save_every=step)
    assert inside(tmp_path / "a") == []


def test_seconds_of_a_stopped_process_count(learn, tmp_path):
    with pytest.raises(Stopped):
        learn("strategy=finetune", folder="a", stop=(0, 8), save_every=6)
    file = tmp_path / "a/checkpoints/mid_task_0.ckpt"
    state = torch.load(file, weights_only=True)
    for kind in ("train", "importance", "evaluation"):
        state["run"]["seconds"][kind] += 1000
    torch.save(state, file)
    seconds = learn("strategy=finetune", folder="a")[0]["seconds"]
    assert all(1000 <= seconds[kind] < 1100 for kind in ("train", "importance", "evaluation"))


def test_the_checkpoint_of_another_run_inside_a_task_is_refused(learn):
    with pytest.raises(Stopped):
        learn("strategy=finetune", folder="a", stop=(0, 8), save_every=6)
    with pytest.raises(ConfigError, match=r"mid_task_0.ckpt belongs to another run \(expected config xyz, got abc\)"):
        learn("strategy=finetune", folder="a", hashed="xyz")


def test_save_every_is_at_least_a_step_and_needs_checkpoints(learn):
    with pytest.raises(ConfigError, match="save_every=0: expected an integer >= 1 or null, got 0"):
        learn("strategy=finetune", folder="a", save_every=0)
    with pytest.raises(ConfigError, match="save_every=5 with checkpoints=none.*Try checkpoints=last"):
        learn("strategy=finetune", "checkpoints=none", folder="b", save_every=5)


def test_save_every_and_sharing_do_not_change_the_run(run):
    first = run("strategy=finetune", *TINY[:-1], *SIZES)
    assert run("strategy=finetune", *TINY[:-1], *SIZES, "save_every=4", "share_first_task=false") == first


# --- without the command: a custom module, or a task, and Lightning's ckpt_path ---------------------------------


class CustomModule(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


class Save(L.Callback):
    """Save a checkpoint at the end of the second epoch, like Lightning's ModelCheckpoint."""

    def __init__(self, file):
        self.file = file

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.file)


def custom(composed):
    torch.manual_seed(0)
    y = torch.randint(3, (40,))
    return CustomModule(), {"train_dataloaders": DataLoader(TensorDataset(torch.randn(40, 4), y), batch_size=8)}


def from_clbench(composed):
    sequence, learner, _ = build(composed(*TINY, "batch_size=16", "net.dropout=0"))
    return learner, {"datamodule": sequence[0]}


@pytest.mark.parametrize("strategy", [EWC, SI, partial(MAS, online=True)], ids=["ewc", "si", "mas online"])
@pytest.mark.parametrize("make", [custom, from_clbench])
def test_a_fit_resumed_by_lightning_has_the_same_strategy_state(composed, tmp_path, make, strategy):
    """The fit resumes from a checkpoint of Lightning through ``ckpt_path``."""
    (whole, data), first = make(composed), strategy()
    trainer([first, Save(tmp_path / "a.ckpt")], max_epochs=4).fit(whole, **data)
    (again, data), second = make(composed), strategy()
    trainer([second], max_epochs=4).fit(again, **data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert same_checkpoint(whole.state_dict(), again.state_dict())
    assert same_checkpoint(first.state_dict(), second.state_dict())
    assert first.state_dict()
