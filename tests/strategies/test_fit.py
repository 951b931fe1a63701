"""Steps of optimizers that miss the penalty, checkpoints of finished tasks, killed and child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from clbench import EWC, L2, MAS, SI, OnlineEWC
from clbench.errors import ConfigError
from clbench.params import fingerprints, named_parameters
from clbench.strategies.fit import refuse_sharded
from clbench.training.monitor import PenaltyMonitor
from tests.conftest import trainer
from tests.forked import run_in_fork
from tests.strategies.test_consolidation import Net, fit
from tests.strategies.test_penalty import Plain, loader


class Manual(Net):
    """Steps in a way that a subclass defines."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.step(loss, batch_idx)


class Unwrapped(Manual):
    def step(self, loss, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Inner(Manual):
    def step(self, loss, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.optimizer.step()


class OneOfTwo(Manual):
    """The optimizer of the head steps through Lightning, and that of the backbone does not."""

    def step(self, loss, batch_idx):
        head, backbone = self.optimizers()
        head.zero_grad()
        backbone.zero_grad()
        self.manual_backward(loss)
        head.step()
        backbone.optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.head, self.backbone)]


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation in two steps, with an optimizer inside, as in its most used implementation."""

    def __init__(self, params, rho=0.01):
        super().__init__(params, {"rho": rho})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def first_step(self):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            self.state[p]["e"] = 0.01 * p.grad
            p.add_(self.state[p]["e"])
            p.grad = None

    @torch.no_grad()
    def second_step(self):
        for p, state in self.state.items():
            p.sub_(state["e"])
        self.base.step()

    def step(self, closure):
        closure = torch.enable_grad()(closure)
        closure()
        self.first_step()
        closure()
        self.second_step()


class SamByTwoSteps(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.first_step()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.second_step()

    def configure_optimizers(self):
        return Sam(self.parameters())


class InBackward(Manual):
    handles = ()

    def on_fit_start(self):
        self.inside = {p: torch.optim.SGD([p], 0.1) for p in self.parameters()}

        def step(p):
            self.inside[p].step()
            p.grad = None

        self.handles = [p.register_post_accumulate_grad_hook(step) for p in self.parameters()]

    def on_fit_end(self):
        for handle in self.handles:
            handle.remove()

    def step(self, loss, batch_idx):
        self.manual_backward(loss)

    def configure_optimizers(self):
        return None


MISSED = {"unwrapped": Unwrapped, "inner": Inner, "one": OneOfTwo, "sam": SamByTwoSteps, "backward": InBackward}


@pytest.mark.parametrize("make", [EWC, SI])
@pytest.mark.parametrize("name", MISSED)
def test_a_step_without_the_penalty_is_an_error_after_one_batch(name, make):
    """EWC has no penalty in the first task. SI sums over its steps."""
    batches = []

    class Counted(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batches.append(batch_idx)

    module, strategy = MISSED[name](), make(lam=1.0)
    if make is EWC:
        fit(module, strategy)
    module.on_fit_end()
    with pytest.raises(ConfigError, match=r"^(SGD|Sam) stepped without .* use self.optimizers\(\).step\(\)"):
        fit(module, strategy, 1, [Counted()])
    assert batches == [0]
    module.on_fit_end()
    fit(module, type(strategy)(lam=0.0) if make is EWC else L2(lam=0.0), 1)  # nothing can be missed


class ByHand(Manual):
    def step(self, loss, batch_idx):
        for p, g in zip(self.parameters(), torch.autograd.grad(loss, list(self.parameters())), strict=True):
            p.data -= 0.1 * g  # leaves no trace in the version of p

    def configure_optimizers(self):
        return None


@pytest.mark.parametrize("make", [EWC, SI])
def test_weights_updated_by_hand_are_an_error_at_the_end(make):
    module, strategy = ByHand(), make(lam=1.0)
    if make is EWC:
        fit(module, strategy)
    with pytest.raises(ConfigError, match="more parameters changed, but no step was announced"):
        fit(module, strategy, 1)


class Clamps(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            for p in pl_module.parameters():
                p.clamp_(-0.2, 0.2)


class Gan(Manual):
    """Two optimizers in turn with toggling, one of them for parameters that are not penalised, stepped raw."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 1)

    def step(self, loss, batch_idx):
        own, _ = self.optimizers()
        self.toggle_optimizer(own)
        own.zero_grad()
        self.manual_backward(loss)
        own.step()
        self.untoggle_optimizer(own)
        _, other = self.optimizers(use_pl_optimizer=False)
        self.other(torch.ones(4)).sum().backward()
        other.step()

    def configure_optimizers(self):
        own = [*self.backbone.parameters(), *self.head.parameters()]
        return [torch.optim.SGD(own, 0.1), torch.optim.Adam(self.other.parameters(), 0.1)]


def with_optimizer(make):
    module = Net()
    module.configure_optimizers = lambda: make(module.parameters())
    return module


ALLOWED = {
    "ema": lambda: (Net(), [EMAWeightAveraging(decay=0.9)], {}),
    "clamp": lambda: (Net(), [Clamps()], {"accumulate_grad_batches": 3}),
    "lbfgs": lambda: (with_optimizer(partial(torch.optim.LBFGS, lr=0.01, max_iter=3)), [], {}),
    "sam": lambda: (with_optimizer(Sam), [], {}),
    "gan": lambda: (Gan(), [], {}),
}


@pytest.mark.parametrize("make", [EWC, SI])
@pytest.mark.parametrize("name", ALLOWED)
def test_other_changes_of_weights_are_no_false_alarm(name, make):
    module, callbacks, options = ALLOWED[name]()
    strategy = make(lam=0.1, exclude=["other.*"] if name == "gan" else None)
    for task in range(2):
        trainer([strategy, *callbacks], **options).fit(module, loader(task))
    assert not strategy._watch._params  # nothing is watched after a fit


def test_sam_has_the_gradient_of_the_penalty_at_both_weights():
    """The loss is constant, so both steps follow the penalty: e = 0.01 g(w), then w - 0.1 g(w + e) (docs/faq.md)."""
    module, strategy = with_optimizer(Sam), L2(lam=2.0)
    fit(module, strategy)
    module.training_step = lambda batch, batch_idx: 0 * module(batch[0]).sum()
    with torch.no_grad():
        module.head.weight.add_(0.5)
    start, anchor = module.head.weight.detach().clone(), strategy.penalty.anchor["head.weight"]
    fit(module, strategy, 1, limit_train_batches=1)
    moved = start + 0.01 * 2.0 * (start - anchor)
    torch.testing.assert_close(module.head.weight.detach(), start - 0.1 * 2.0 * (moved - anchor))


# --- step size ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("monitors", [0, 1])
def test_a_step_size_above_the_bound_is_reported_once(monitors):
    """Fine-tuning with SGD at lr=0.1 and L2 is stable below lam=20."""
    module, strategy = Net(), L2(lam=21.0)
    fit(module, strategy)
    callbacks = [PenaltyMonitor() for _ in range(monitors)]
    with pytest.warns(UserWarning, match="is unstable") as caught:
        fit(module, strategy, 1, callbacks)
    texts = [str(w.message) for w in caught if "is unstable" in str(w.message)]
    assert len(texts) == 1
    assert (
        "SGD with lr=0.1 and lam=21 is unstable: lr*lam*max importance = 2.1, but the steps are stable only below 2"
        in texts[0]
    )


@pytest.mark.parametrize(("lam", "optimizer"), [(19.0, torch.optim.SGD), (1e6, torch.optim.Adam)])
def test_a_stable_step_size_is_not_reported(lam, optimizer):
    module, strategy = Plain(optimizer, 0.1), L2(lam=lam)
    for task in range(2):
        trainer([strategy]).fit(module, loader(task))  # warnings are errors


# --- checkpoints --------------------------------------------------------------------------------------------------------

STRATEGIES = {
    "ewc": partial(EWC, lam=1.0),
    "online_ewc": partial(OnlineEWC, lam=1.0, gamma=0.9),
    "mas": partial(MAS, lam=0.1),
    "mas_online": partial(MAS, lam=0.1, online=True),
    "mas_local": partial(MAS, lam=0.1, form="local"),
    "si": partial(SI, lam=0.1),
}


def learn(module, strategy, folder, task, ckpt_path=None, callbacks=(), epochs=2):
    """Fit a task as with Lightning's checkpoints. They are written to ``folder / str(task)``."""
    saves = ModelCheckpoint(folder / str(task), save_last=True)
    t = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[strategy, saves, *callbacks],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    t.fit(module, loader(task), ckpt_path=ckpt_path)
    return t


def state(module, strategy):
    q = strategy.penalty
    return fingerprints(named_parameters(module)), fingerprints(q.importance), fingerprints(q.anchor), q.constant.item()


class Interrupts(L.Callback):
    """Stops the process when training ends. Strategies come after it."""

    def on_train_end(self, trainer, pl_module):
        raise InterruptedError


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_checkpoint_of_a_finished_task_has_its_penalty(name, tmp_path):
    """A fit resumed from it changes nothing, and a new process continues from it like the old one."""
    module, strategy = Net(), STRATEGIES[name]()
    learn(module, strategy, tmp_path, 0)
    for file in (tmp_path / "0").iterdir():
        saved = torch.load(file, weights_only=True)
        assert not saved["callbacks"][strategy.state_key]["pending"]
        again, loaded = Net(), STRATEGIES[name]()
        again.load_state_dict(saved["state_dict"])
        loaded.load_state_dict(saved["callbacks"][strategy.state_key])
        assert state(again, loaded) == state(module, strategy)
        third, resumed = Net(), STRATEGIES[name]()
        learn(third, resumed, tmp_path, 0, file)
        assert state(third, resumed) == state(module, strategy)
    learn(module, strategy, tmp_path, 1)
    learn(again, loaded, tmp_path / "more", 1)
    assert state(again, loaded) == state(module, strategy)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_task_stopped_before_its_consolidation_is_consolidated(name, task, tmp_path):
    """The last epoch is done, so the resumed fit trains nothing. Its penalty equals that of an uninterrupted run."""
    whole, right = Net(), STRATEGIES[name]()
    module, strategy = Net(), STRATEGIES[name]()
    for index in range(task + 1):
        learn(whole, right, tmp_path / "whole", index)
        if index < task:
            learn(module, strategy, tmp_path, index)
    with pytest.raises(InterruptedError):
        learn(module, strategy, tmp_path, task, callbacks=[Interrupts()])
    again, resumed = Net(), STRATEGIES[name]()
    learn(again, resumed, tmp_path, task, tmp_path / str(task) / "last.ckpt")
    assert state(again, resumed) == state(whole, right)
    assert resumed.examples == right.examples
    learn(again, resumed, tmp_path / "next", 2)
    learn(whole, right, tmp_path / "whole", 2)
    assert state(again, resumed) == state(whole, right)


@pytest.mark.parametrize("name", ["ewc", "mas_online", "si"])
def test_a_task_stopped_after_an_epoch_resumes_bit_identical(name, tmp_path):
    whole, right = Net(), STRATEGIES[name]()
    module, strategy = Net(), STRATEGIES[name]()
    for task in range(2):
        learn(whole, right, tmp_path / "whole", task)
    learn(module, strategy, tmp_path, 0)

    class Late(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        learn(module, strategy, tmp_path, 1, callbacks=[Late()])
    again, resumed = Net(), STRATEGIES[name]()
    learn(again, resumed, tmp_path, 1, tmp_path / "1" / "last.ckpt")
    assert state(again, resumed) == state(whole, right)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_training_longer_from_a_consolidated_checkpoint_warns(tmp_path):
    module, strategy = Net(), EWC(lam=1.0)
    learn(module, strategy, tmp_path, 0)
    with pytest.warns(
        UserWarning, match="checkpoint is that of a consolidated task, so this training counts as a new task"
    ):
        learn(Net(), EWC(lam=1.0), tmp_path, 0, tmp_path / "0" / "last.ckpt", epochs=3)


def test_state_from_inside_a_task_does_not_start_the_next(tmp_path):
    module, strategy = Net(), EWC(lam=1.0)
    states = []

    class Keeps(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            states.append(strategy.state_dict())

    learn(module, strategy, tmp_path, 0, callbacks=[Keeps()])
    loaded = EWC(lam=1.0)
    loaded.load_state_dict(states[0])
    with pytest.raises(ConfigError, match="the last task is not consolidated.* Finish it with trainer.fit"):
        fit(module, loaded, 1)


# --- processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_strategies_that_split_parameters_are_refused(kind):
    class Sharded:
        strategy = object.__new__(kind)

    with pytest.raises(ConfigError, match=f"^{kind.__name__} splits parameters over devices.* Use 'ddp'$"):
        refuse_sharded(Sharded)


SPAWNED = """
import sys
import torch
from tests.strategies.test_fit import EWC, MAS, L, Net, SI, fingerprints, loader

if __name__ == "__main__":
    torch.set_num_threads(1)
    options = dict(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    for make in (EWC, SI):
        module, strategy = Net(), make(lam=0.1)
        for task in range(2):
            L.Trainer(callbacks=[strategy], devices=2, strategy=sys.argv[1], **options).fit(module, loader(task))
        assert list(strategy.penalty.importance) == [n for n, _ in module.named_parameters()]
        assert strategy.penalty.importance["head.weight"].any()
        if make is SI:
            assert fingerprints(strategy.penalty.anchor) == fingerprints(dict(module.named_parameters()))
    print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_child_processes_give_the_state_back(launcher, tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    line = [sys.executable, "-W", "ignore", str(script), launcher]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment())
    assert "done" in done.stdout, done.stderr[-2000:]


def environment():
    root = Path(__file__).parents[2]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}:{root}"}


RECIPE = Path(__file__).parents[2] / "docs" / "resume.md"


def recipe():
    """Return the script of docs/resume.md."""
    text = RECIPE.read_text(encoding="utf-8")
    return next(part for part in text.split("```python\n")[1:] if "done.ckpt" in part).split("```")[0]


KILLED = """
import os, signal, sys
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch import Trainer
import clbench.strategies.penalty as penalty
import torch

stage, number = sys.argv[1], int(sys.argv[2]) + 1
count = {"fits": 0}

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def counted(self, *args, fit=Trainer.fit, **kwargs):
    count["fits"] += 1
    return fit(self, *args, **kwargs)

def at(self, *args, original, **kwargs):
    if count["fits"] == number:
        kill()
    return original(self, *args, **kwargs)

def patch(owner, name):
    original = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **kwargs: at(self, *args, original=original, **kwargs))

Trainer.fit = counted
if stage == "epoch_start":
    original = penalty.QuadraticStrategy.on_train_epoch_start
    penalty.QuadraticStrategy.on_train_epoch_start = lambda self, trainer, module: (
        kill() if count["fits"] == number and trainer.current_epoch == 1 else original(self, trainer, module))
elif stage == "consolidation":
    patch(penalty.QuadraticStrategy, "_consolidate")
elif stage == "saving":
    original_save = penalty.save_again
    penalty.save_again = lambda trainer: kill() if count["fits"] == number else original_save(trainer)
elif stage == "fit_end":
    patch(penalty.QuadraticStrategy, "on_fit_end")
elif stage == "next_task":
    patch(penalty.QuadraticStrategy, "on_train_start")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        "EWC(lam=100.0)",
        "OnlineEWC(lam=100.0)",
        "MAS(lam=0.1)",
        "MAS(lam=0.1, form='local')",
        "MAS(lam=0.1, online=True)",
        "SI()",
    ],
)
def test_the_recipe_survives_kills_at_every_stage(make, tmp_path):
    """Three tasks, each process killed at another stage. The last one ends with the bits of a process never killed."""
    script = (
        "import warnings\nwarnings.simplefilter('ignore')\nimport torch\ntorch.set_num_threads(1)\n"
        + recipe()
        .replace("EWC(lam=100.0)", make)
        .replace("from clbench import EWC", "from clbench import EWC, MAS, SI, OnlineEWC")
    )

    def go(folder, stage="none", task=0):
        folder.mkdir(exist_ok=True)
        (folder / "script.py").write_text(KILLED + script)
        done = run_in_fork(("script.py", stage, str(task)), folder, environment())
        expected = -signal.SIGKILL if stage != "none" else 0
        assert done.returncode == expected, (stage, done.stderr[-2000:])
        return done.stdout

    go(tmp_path / "whole")
    # the number counts the fits of the process, and finished tasks are not fitted again
    for stage, number in [
        ("epoch_start", 0), ("consolidation", 0), ("fit_end", 0), ("next_task", 1), ("epoch_start", 0), ("saving", 0),
        ("fit_end", 0), ("consolidation", 1),
    ]:  # fmt: skip
        go(tmp_path / "killed", stage, number)
    go(tmp_path / "killed")
    go(tmp_path / "killed")  # complete
    for task in range(3):
        ends = [torch.load(tmp_path / f / "runs" / f"task_{task}" / "done.ckpt") for f in ("whole", "killed")]
        weights, states = zip(*((e["state_dict"], e["callbacks"]) for e in ends), strict=True)
        key = next(k for k in states[0] if not k.startswith("ModelCheckpoint"))
        assert fingerprints(weights[0]) == fingerprints(weights[1])
        for part in ("importance", "anchor"):
            assert fingerprints(states[0][key][part]) == fingerprints(states[1][key][part])


# --- other training loops -----------------------------------------------------------------------------------------------


def learn_in_a_loop(strategy, module, batches, adds=True):
    """Train by plain SGD, without a Trainer."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    strategy.begin(module)
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        if adds:
            strategy.add_gradients(optimizer)
        optimizer.step()
    strategy.consolidate(module, batches)


def test_a_loop_without_a_trainer_has_the_exact_penalty():
    """The second task equals training on the loss plus the penalty."""
    torch.manual_seed(0)
    tasks = [[(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(5)] for _ in range(2)]
    module, ewc = nn.Linear(4, 2), EWC(lam=5.0)
    learn_in_a_loop(ewc, module, tasks[0])
    copy = nn.Linear(4, 2)
    copy.load_state_dict(module.state_dict())
    first, optimizer = ewc.penalty, torch.optim.SGD(copy.parameters(), lr=0.1)
    for x, y in tasks[1]:
        optimizer.zero_grad()
        at = dict(copy.named_parameters())
        q = sum((f * (at[name] - first.anchor[name]) ** 2).sum() for name, f in first.importance.items())
        (nn.functional.cross_entropy(copy(x), y) + 2.5 * q).backward()
        optimizer.step()
    learn_in_a_loop(ewc, module, tasks[1])
    for a, b in zip(module.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ConfigError, match=r"call add_gradients\(optimizer\) before each step"):
        learn_in_a_loop(ewc, module, tasks[0], adds=False)
