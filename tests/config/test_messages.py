"""The command line: one-line errors, help, sweeps and user code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from clbench.config.messages import user_message

TINY = ("epochs=1", "data.tasks=2", "net.hidden=[8]", "+trainer.limit_train_batches=2", "trainer=cpu")

ERRORS = [
    (["lam=-1"], "lam=-1: expected a finite number >= 0, at most 3.4e38, got -1."),
    (["lam=nan"], "lam=nan: expected a finite number >= 0"),
    (["lam=much"], "lam=much: expected a finite number >= 0, at most 3.4e38, got 'much'."),
    (["strategy=ewcc"], "strategy=ewcc: expected one of adam_moments, agem, "),
    (
        ["experiment=continual_lm", "net=mlp"],
        "net.width=64: clbench.nets.mlp has no option width. experiment=continual_lm sets it for another net. Try ~net.width.",
    ),
    (
        ["data=text_domains", "scenario=domain", "strategy=lwf"],
        "expected one label per example, got a label per token or pixel. Use strategy=er, or a strategy with a quadratic penalty",
    ),
    (["net=mlp_bn", "data=split_digits", "batch_size=16"], "batch_size=16: the last batch of task "),
    (["data=emnist"], "data=emnist: expected one of bit_ops, "),
    (["fisher=true"], "fisher=true: expected one of exact, sample, empirical, predicted"),
    (["fisher=exact", "fisher_batch=100"], "Use fisher_batch=1 and divide lam by 100"),
    (["strategy=finetune", "lam=3"], "lam=3: strategy=finetune has no option lam. Remove it, or try strategy=adam_moments"),
    (["strategy=mas", "fisher=exact"], "fisher=exact: strategy=mas has no option fisher. Remove it, or try strategy=ewc, "),
    (["samples=0"], "samples=0: expected an integer >= 1 or null, got 0."),
    (["samples=5000"], "samples=5000: expected at most 1293, the number of training examples of the smallest task. Try 1293"),
    (["data=split_digits", "data.tasks=11"], "data.tasks=11: expected at most 10, the number of classes"),
    (["data=split_digits", "data.tasks=3"], "data.tasks=3: expected a divisor of the 10 classes. Use a divisor, or "),
    (["data.tasks=0"], "data.tasks=0: expected an integer from 1 to 10000 or null, got 0."),
    (["data.validation=1"], "data.validation=1: expected a share in [0, 1), got 1."),
    (
        ["data=split_digits", "data.tasks=null", "data.split.classes_per_task=[4,3,3]", "scenario=domain"],
        "scenario=domain: expected tasks with equal numbers of classes, got [4, 3, 3]. Make them equal, or use",
    ),
    (["scenario=class", "scenario.head=multi"], "scenario.head=multi: expected single with scenario=class."),
    (["net.hidden=[wide]"], "net.hidden=[wide]: expected a list of integers, got [wide]."),
    (["net.hidden=[-1]"], "net=clbench.nets.mlp cannot be built for inputs of shape (1, 8, 8)"),
    (["net._target_=torch.nn.Conv2d", "~net.hidden", "~net.batch_norm", "~net.dropout", "~net.init", "~net.activation",
      "+net.out_channels=3",
      "+net.kernel_size=9"], "net=torch.nn.Conv2d cannot be built for inputs of shape (1, 8, 8)"),
    (["trainer.accelerator=gpu"], "trainer.accelerator=gpu: expected a GPU, found none. Try trainer=cpu."),
    (["data=split_mnist", "data_dir=nowhere"], "data set MNIST is not in nowhere and could not be downloaded"),
    (["checkpoints=some"], "checkpoints=some: expected one of all, last, none, got 'some'."),
    (["objective=speed", *TINY], "objective=speed: expected the key of a number in metrics.json. Try objective=validation"),
    (["epochs=0"], "epochs=0: expected an integer >= 1 or a list of integers >= 1, got 0."),
    (["seed=-1"], "seed=-1: expected an integer >= 0, got -1."),
    (["batch_size=0"], "batch_size=0: expected an integer >= 1, got 0."),
    (["bn=frozen"], "bn=frozen: expected one of train, freeze_after_first"),
    (["depth=3"], "unknown option depth. --help lists all options."),
    (["eval_every=often"], "eval_every=often: expected an integer >= 1 or null, got 'often'."),
    (["save_every=0"], "save_every=0: expected an integer >= 1 or null, got 0."),
    (["share_first_task=maybe"], "share_first_task=maybe: expected true or false, got 'maybe'."),
    (["metrics.extra=[nope.metric]"], "metrics.extra=[nope.metric] cannot be imported: No module named 'nope'"),
    (["metrics.extra=[math.sqrt]"], "metrics.extra=[math.sqrt]: expected parameters named matrix, initial and mid_task"),
    (["+lam=3"], "+lam=3: the option lam already exists. Try lam=3."),
    (["+optimizer.make.lr=3"], "+optimizer.make.lr=3: this option is named lr. Try lr=3."),
    (["~optimizer.make.lr"], "optimizer.make.lr=null: expected ${lr}, because the option lr=0.001 sets the learning rate. Try "),
    (["optimizer.make.lr=3"], "sets the learning rate. Try lr=3, or write lr: ${lr} in the yaml of your optimizer."),
    (["~lamda"], "unknown option lamda. Did you mean lam? "),
    (["strategy.lam=5"], "strategy.lam=5: this option is named lam. Try lam=5."),
    (["strategy=nccl", "gamma=0"], "gamma=0: strategy=nccl reads strategy.gamma (1.0) instead. Try strategy.gamma=0."),
    (["select_lam_on_first_tasks=2"], "select_lam_on_first_tasks=2: expected a grid over lam. Add -m and several values of lam"),
    (["net=mlp_bn", "batch_size=1"], "batch_size=1: BatchNorm cannot be trained on one example"),
    (["net=mlp_bn", "strategy=agem", "strategy.replay=1"], "AGEM would replay one example at a time"),
    (["net=mlp_bn", "strategy=nccl", "memory=1"], "NCCL would replay one example at a time"),
    (["net=mlp_bn", "steps=20", "data.examples_per_task=65"], "batch_size=32: the last batch of task 1 has one example"),
    (
        ["net=mlp_bn", "strategy=joint", "data.tasks=2", "data.validation=0", "data.examples_per_task=[40,57]"],
        "batch_size=32: the last batch of task 2 has one example",
    ),
    (["strategy.lable_samples=3"], "Did you mean strategy.label_samples? --help lists all options, and +strategy.lable_samples="),
    (["lamda=3"], "unknown option lamda. Did you mean lam? --help lists all options."),
    (["lam=1,10"], "lam=1,10: expected one value, got several. Add -m to run each of them, or try lam=[1,10] for a list."),
    (["lam=1,"], "'lam=1,': expected option=value. Try lam=10, or -m lam=1,10 for several values, without spaces."),
    (["lam"], "'lam': expected option=value. Try lam=10, or -m lam=1,10 for several values, without spaces."),
    (["strategy=EWC"], " Did you mean ewc?"),
    (["trainer.max_epochs=3"], "trainer.max_epochs: this option is named epochs. Try epochs=..."),
    (["+trainer.max_epochs=3"], "trainer.max_epochs=3: this option is named epochs. Try epochs=3."),
    (["+data.batch_size=64"], "data.batch_size=64: this option is named batch_size. Try batch_size=64."),
    (["+trainer.gradient_clip_value=1"], "Trainer has no option gradient_clip_value. Did you mean gradient_clip_val? "),
    (["trainer.precision=8"], "trainer.precision=8: expected a precision with float32 weights. Try 32-true"),
    (["optimizer.reset=no"], "optimizer.reset=no: expected true or false or moments, got 'no'."),
    (["net.batch_norm=no"], "net.batch_norm=no: expected true or false, got 'no'."),
    (["data.drop_last=no"], "data.drop_last=no: expected true or false, got 'no'."),
    (["+strategy.foo=1"], "strategy.foo=1: clbench.strategies.EWC has no option foo. Try one of chunk, class_dim, "),
    (["+data.foo=1"], "data.foo=1: clbench.data.TaskSequence has no option foo. Try one of augment, "),
    (["data.tasks=many"], "data.tasks=many: expected an integer from 1 to 10000 or null, got 'many'."),
    (["data.scale=0"], "data.scale=0: expected a finite number > 0, got 0."),
    (["data.mean=[0]", "data.std=[0]"], "data.std=[0]: expected standard deviations > 0, got [0]. Use data.mean=null "),
    (["data=split_digits", "data.split.order=odd"], "data.split.order=odd: expected natural, seed, or a list of classes"),
    (["data.augment=flip"], "data.augment=flip: expected an object with the key _target_, "),
    (["net._target_=torch.nn.Linearr"], "_target_=torch.nn.Linearr cannot be imported: Are you sure that 'Linearr' is imp"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"), ERRORS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_an_error_of_the_user_is_one_line_before_training(run, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra chooses the type, the test checks the message
        run(*overrides)
    line = user_message(caught.value)
    assert line is not None
    assert message in line
    assert "\n" not in line
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_truncated_data_file_is_named(run, tmp_path):
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for name, magic in (("train-images", 2051), ("train-labels", 2049), ("t10k-images", 2051), ("t10k-labels", 2049)):
        dims = b"\x00\x00\x00\x1c" * 2 if magic == 2051 else b""
        kind = "idx3" if magic == 2051 else "idx1"
        (raw / f"{name}-{kind}-ubyte").write_bytes(
            magic.to_bytes(4, "big") + (60000).to_bytes(4, "big") + dims + b"\x00" * 99
        )
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run("data=split_mnist", f"data_dir={tmp_path / 'data'}")
    assert "MNIST in" in user_message(caught.value)
    assert "a file may be truncated" in user_message(caught.value)
    assert "Delete it" in user_message(caught.value)


def test_a_stiff_penalty_stops_with_its_remedy(run):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run("strategy=l2", "optimizer=sgd", "lam=1e6", "data.tasks=2", "epochs=3", "net.hidden=[8]")
    assert "sgd lr=0.01 with lam=1e+06 is too stiff (lr*lam*max importance = 1e+04" in user_message(caught.value)
    assert "Lower lam or lr, or use optimizer=adam" in user_message(caught.value)


def test_the_command_ends_with_one_line_and_exit_code_1(command):
    done = command("strategy=ewcc")
    assert done.returncode == 1
    assert done.stderr.startswith("error: strategy=ewcc: expected one of adam_moments, agem, ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_hydra_full_error_shows_the_traceback(command):
    done = command("net.hidden=[-1]", environment={"HYDRA_FULL_ERROR": "1"}, imported=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "ConfigError: net=clbench.nets.mlp cannot be built" in done.stderr


@pytest.mark.parametrize("typed", [("--lam", "10"), ("--lam=10",)])
def test_an_option_with_dashes_gets_a_message_on_the_syntax(command, typed):
    done = command(*typed)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: {typed[0]}: expected option=value without dashes. Try lam=(10|\.\.\.)\n", done.stderr)


def test_the_usage_line_names_the_command(command):
    done = command("--nosuch")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: clbench train ")


def test_help_lists_the_groups_and_the_meaning_of_every_option(command):
    done = command("strategy=mas", "--help")
    assert done.returncode == 0
    for text in (
        "clbench train strategy=ewc lam=1e5",
        "strategy:   adam_moments, agem, der, derpp",
        "GROUP=CHOICE",
        "lam=1.0 ",
        "strength of the penalty, >= 0",
        "strategy.decay=1.0 ",
    ):
        assert text in done.stdout
    assert "Powered by" not in done.stdout
    done = command("-m", "strategy=si,mas", "lam=tag(log, interval(1, 10))", "seed=0,1", "--help")
    assert "\nstrategy=si: " in done.stdout and "\n  lam=" in done.stdout, done.stderr
    assert command("strategy=ewcc", "--help").stderr.startswith("error: strategy=ewcc: expected one of")


def test_the_command_prints_only_plan_tasks_and_summary(command, tmp_path):
    done = command("strategy=ewc", "lam=1e5", *TINY, "output_dir=here")
    assert done.returncode == 0
    assert done.stderr == ""
    for text in (
        "ewc (lam=100000.0, fisher=exact, samples=all",
        "permuted_digits, 2 tasks of 10 classes",
        "seed",
        "cpu",
    ):
        assert text in done.stdout
    for text in ("task 1/2", "task 2/2", "average accuracy", "forgetting", "results in"):
        assert text in done.stdout
    assert "Warning" not in done.stdout
    assert (tmp_path / "here/metrics.json").exists()


def test_a_sweep_merges_duplicates_and_reports_a_failed_run(command, tmp_path):
    """Combinations that train the same run are trained once, and the other runs finish although one fails."""
    done = command("-m", "strategy=finetune,mas", "lam=1,-1,1e3", *TINY, "output_dir=sweep")
    assert done.returncode == 1
    assert (
        "4 runs in sweep (2 of 6 combinations are duplicates and were merged: their strategy ignores the varied option)"
        in done.stderr
    )
    assert "1 of 4 runs are not done (see the table). Rerun the same command to complete them." in done.stderr
    assert "lam=-1: expected a finite" in " ".join(done.stdout.split())
    results = [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("sweep/*/metrics.json")]
    assert sorted(r["strategy"].get("lam", 0) for r in results) == [0, 1, 1000]
    (folder,) = tmp_path.glob("sweep/finetune-seed0-*")
    assert yaml.safe_load((folder / ".hydra/config.yaml").read_text(encoding="utf-8"))["lam"] is None


@pytest.mark.slow
def test_a_sweep_resumes_after_a_parallel_worker_is_killed(command, run, tmp_path):
    """No run is lost, and the resumed runs have the results of runs that were trained alone."""
    sweep = ("-m", "seed=0,1,2", *TINY)
    arguments = [sys.executable, "-m", "clbench.train", *sweep, "launch=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [*arguments, "output_dir=joblib"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("joblib/*/checkpoints/task_0.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    children = subprocess.run(["ps", "-wwo", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)
    workers = [int(line.split()[0]) for line in children.stdout.splitlines() if "popen_loky" in line]
    assert workers, children.stdout
    os.kill(workers[0], signal.SIGKILL)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a worker was killed" in shown and "Rerun the same command to complete them." in shown, shown

    done = command(*sweep, "launch=joblib", "output_dir=joblib", imported=False)
    assert done.returncode == 0, done.stderr
    runs = sorted(tmp_path.glob("joblib/*/metrics.json"))
    assert len(runs) == 3
    for file in runs:
        second = json.loads(file.read_text(encoding="utf-8"))
        first = run(f"seed={second['seed']}", *TINY, folder=f"alone/{second['seed']}")
        for key in first.keys() - {"seconds", "shared_first_task"}:
            assert first[key] == second[key], key


def test_a_strategy_from_outside_is_one_file_and_one_yaml(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from clbench.strategies import L2\n\n"
        "class Twice(L2):\n    @property\n    def strength(self):\n        return 2 * self.lam\n",
        encoding="utf-8",
    )
    (tmp_path / "more/strategy").mkdir(parents=True)
    (tmp_path / "more/strategy/twice.yaml").write_text(
        "# @package _global_\nlam: 0.5\nstrategy:\n  _target_: mine.Twice\n  lam: ${lam}\n", encoding="utf-8"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    done = command("--config-dir", "more", "strategy=twice", *TINY, "output_dir=dir", environment=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "dir/metrics.json").read_text(encoding="utf-8"))
    assert result["strategy"] == {"name": "twice", "lam": 0.5}
    search = f"hydra.searchpath=[file://{tmp_path / 'more'}]"
    done = command(search, "strategy=twice", *TINY, "output_dir=searched", environment=environment)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "searched/metrics.json").read_text(encoding="utf-8"))["accuracy_matrix"]
        == result["accuracy_matrix"]
    )
    (tmp_path / "more/strategy/nested.yaml").write_text(
        "lam: 0.5\nstrategy:\n  _target_: mine.Twice\n  lam: ${lam}\n", encoding="utf-8"
    )
    done = command("--config-dir", "more", "strategy=nested", *TINY, environment=environment)
    assert done.stderr.startswith(
        "error: strategy: expected a key _target_, got lam, strategy. Try '# @package _global_' as the first line"
    )


@pytest.mark.slow
def test_clbench_train_is_the_same_command(tmp_path):
    script = Path(sys.executable).with_name("clbench-train")
    done = subprocess.run([script, *TINY, "output_dir=here"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here/metrics.json").exists()


@pytest.mark.slow
def test_a_light_run_imports_no_heavy_package_it_does_not_use(tmp_path):
    program = (
        f"import sys, runpy; sys.argv = ['clbench.train', *{TINY!r}, 'output_dir=x']\n"
        "runpy.run_module('clbench.train', run_name='__main__')\n"
        "print('IMPORTED', [m for m in ('wandb', 'clbench.report', 'tensorboard', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "IMPORTED []" in done.stdout, done.stdout + done.stderr
