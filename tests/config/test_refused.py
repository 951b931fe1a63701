"""Options that no run can have are refused in one line, before training and without a trace in the hash."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch

import clbench
from clbench.config.declarations import declarations, files, top_level_options
from clbench.config.messages import user_message
from clbench.errors import ConfigError, Unstable
from tests.conftest import others_slow

TINY = ("data.tasks=2", "steps=1", "net.hidden=[8]", "trainer=cpu", "logger=none")

UNKNOWN = [
    ("optimizer.lr=1", "Try lr=1, which sets optimizer.make.lr."),
    ("+optimizer.lr=1", "Try lr=1, which sets optimizer.make.lr."),
    ("+lamda=3", "lamda=3: unknown option lamda. Did you mean lam?"),
    ("+foo=1", "foo=1: unknown option foo. --help"),
    ("+scheduler.lr=3", "unknown option scheduler.lr. This option is named lr."),
    ("+scenario.foo=1", "Scenario has no option foo. Try one of head, name, train_classes."),
    (
        "+net.hiden=[1]",
        "clbench.nets.mlp has no option hiden. Did you mean hidden? Try one of activation, batch_norm, dropout, hidden, init.",
    ),
    ("+data.foo=1", "TaskSequence has no option foo. Try one of augment"),
    ("+data.split.tasks=3", "data.split.tasks=3: clbench sets this argument. Try ~data.split.tasks."),
    ("+data.source.download=true", "data.source.download=true: clbench sets this argument."),
    ("+strategy.foo=1", "EWC has no option foo. Try one of chunk"),
    ("+trainer.foo=1", "Trainer has no option foo. Try one of accelerator"),
    ("+logger.x.foo=1", "logger.x: expected a key _target_, got foo."),
    ("+metrics.foo=1", "unknown option metrics.foo"),
    ("+launch.foo=1", "launch.foo=1: unknown option launch.foo."),
    ("+optimizer.make.foo=1", "Adam has no option foo. Try one of amsgrad"),
    ("scheduler.length=T_max", "has no option scheduler.length. It is an option of scheduler=cosine."),
]

MISSING = [
    *((f"~{key}", f"~{key}: every run needs the option {key}.") for key in ("epochs", "seed", "threads", "objective")),
    *(
        (f"~{key}", f"~{key}: every run needs")
        for key in ("data.name", "optimizer.make", "trainer.devices", "metrics.extra")
    ),
    *(
        (f"~{group}", f"{group}: expected one of ")
        for group in ("strategy", "optimizer", "scenario", "trainer", "logger")
    ),
    *(
        (f"~{key}._target_", f"{key}: expected a key _target_, got ")
        for key in ("strategy", "data", "net", "optimizer.make")
    ),
    ("~net._partial_", "missing 1 required positional argument"),
]

VALUES = [
    ("net.hidden=[0]", "expected layers of at least one unit, but 1.weight has no values."),
    ("net.hidden=5", "net.hidden=5: expected a list of integers, got 5."),
    ("net.hidden={a:1}", "net.hidden={a:1}: expected a value of the form that --help shows"),
    ("net.dropout=nan", "net.dropout=nan: expected a finite number, got nan."),
    ("strategy.include=5", "strategy.include=5: expected a string, a list of strings or null, got 5."),
    ("strategy._target_=builtins.dict", "expected a clbench.strategies.base.Strategy, got builtins.dict."),
    ("strategy._target_=5", "strategy._target_=5: expected the dotted path of a class"),
    ("data._target_=builtins.dict", "expected a clbench.data.sequence.TaskSequence, got builtins.dict."),
    ("scenario._target_=builtins.dict", "expected a clbench.data.scenario.Scenario, got builtins.dict."),
    ("trainer._target_=builtins.dict", "expected a lightning.pytorch.trainer.trainer.Trainer"),
    (
        "optimizer.make._target_=torch.optim.SparseAdam",
        "could not be constructed or stepped (SparseAdam does not support",
    ),
    ("data.split=5", "data.split=5: expected an object with the key _target_, got 5."),
    (
        "data.augment={_target_:torchvision.transforms.v2.RandomCrop,size:500}",
        "data.augment fails on images of shape (1, 8, 8)",
    ),
    (
        "data.augment={_target_:torchvision.transforms.v2.RandomCrop,size:4}",
        "data.augment: expected images of shape (1, 8, 8)",
    ),
    ("epochs=true", "epochs=true: expected an integer >= 1 or a list of integers >= 1, got true."),
    ("epochs=null", "epochs=null: expected an integer >= 1"),
    ("steps=[1,null]", "steps=[1,null]: expected an integer >= 1"),
    ("seed=100000000000000000000", "The largest integer is 9223372036854775807."),
    ("lr=nan", "lr=nan: expected a finite number >= 0 or null, got nan."),
    ("lr=true", "lr=true: expected a finite number >= 0 or null, got true."),
    ("lr=1e300", "Adam could not be constructed or stepped"),
    ("bn=null", "bn=null: expected a string, got null."),
    ("data_dir=null", "data_dir=null: expected a string, got null."),
    ("metrics.extra=foo", "metrics.extra=foo: expected a list of strings, got 'foo'."),
    ("data.tasks=1000000000", "data.tasks=1000000000: expected an integer from 1 to 10000"),
    ("data.workers=-1", "data.workers=-1: expected an integer from 0 to 1024 or null, got -1."),
    ("data.workers=abc", "data.workers=abc: expected an integer from 0 to 1024 or null, got 'abc'."),
    ("data.memory_limit=-1", "data.memory_limit=-1: expected an integer >= 0 or null, got -1."),
    ("+trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: expected a finite number >= 0 or null"),
    ("+trainer.gradient_clip_val=nan", "trainer.gradient_clip_val=nan: expected a finite number >= 0 or null"),
    *((f"+trainer.accumulate_grad_batches={n}", "expected an integer >= 1, got ") for n in (0, -1, 1.5)),
    ("+trainer.callbacks=[foo]", "trainer.callbacks=[foo]: expected a list of Callback"),
    ("trainer.devices=3", "expected one process without trainer=ddp. Try trainer=ddp trainer.devices=3."),
    ("trainer.accelerator=tpu", "Trainer could not be constructed"),
    *((f"threads={n}", f"threads={n}: expected an integer from 1 to 1024 or null") for n in (1000000, 0, -1, "abc")),
    ("objective=5", "objective=5: expected a string, got 5."),
    ("logger=[csv,foo]", "logger=foo: expected one of csv, none, "),
]

SEVERAL = [
    (("patience=1", "steps=10", "~epochs"), "~epochs: every run needs the option epochs."),
    (("trainer=ddp", "trainer.devices=1000", "batch_size=1000"), "trainer.devices=1000: expected at most "),
    (
        ("trainer=ddp", "batch_size=33"),
        "batch_size=33: expected a multiple of the 2 processes that share a batch. Try batch_size=34.",
    ),
    (("consolidate=best", "data.validation=0"), "need validation data of every task"),
    (("data=bit_ops", "bits=null"), "bits=null: expected an integer, got null."),
]

NAMES = [
    *((f"strategy={value}", ": expected one of adam_moments, agem, ") for value in ("5", "null", "[ewc,mas]", "{a:1}")),
    ("+strategy=ewc", "the group strategy already has a choice. Try strategy=..."),
    ("hydra/launcher=foo", "hydra/launcher=foo: expected one of basic, joblib."),
    ("+hydra.foo=1", "hydra.foo=1: unknown option hydra.foo."),
    ("lam=???", "lam: its value ??? means that it must be given. Add lam=VALUE."),
    ("+hydra.run.foo=1", "hydra.run.foo=1: unknown option hydra.run.foo."),
    ("~", "~: expected the name of an option or a group to remove"),
    ("~samples", "~samples: the option is null or not set, so it has no value to remove."),
    ("lam=range(1,3)", "lam=range(1,3): expected one value, got several. Add -m to run each of them."),
    ("net.hidden[0]=3", "expected option=value."),
    ("lam=${lamm}", "lam=${lamm}: expected a reference to an option, but there is no option lamm. Did you mean lam?"),
    ("lam=${lam}", "lam: Recursive interpolation detected. Try a plain value."),
    ("lam=${oc.env:CLBENCH_NO_SUCH_VARIABLE}", "lam: KeyError raised while resolving interpolation: "),
    ("samples=${lam}", "samples=1000.0: expected an integer >= 1 or null"),
    *(
        (f"{name}=${{strategy}}", f"{name}={{_target_:clbench.strategies.EWC")
        for name in ("patience", "compile", "data_dir")
    ),
]

OBJECTS = [
    (
        "strategy._target_=clbench.strategies",
        "expected the dotted path of a class, such as my_module.MyClass, got the module",
    ),
    *((f"net._target_={path}", "expected the dotted path of a class") for path in ("''", "a..b", ".a")),
    ("data.source._target_=os.system", "_target_=os.system: Hydra refuses to call this function."),
    ("+trainer.callbacks={_target_:nope.nope}", "_target_=nope.nope cannot be imported: "),
    ("strategy.include={_target_:builtins.dict}", "strategy.include={_target_:builtins.dict}: expected a string"),
    ("+trainer.max_time=5", "trainer.max_time=5: expected a string, timedelta, keys and values or null, got 5."),
    ("+trainer.profiler=true", "trainer.profiler=true: expected Profiler, a string or null, got true."),
    ("trainer.precision=foo", "trainer.precision=foo: expected a precision with float32 weights."),
    ("+trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn: expected a strategy that starts the command again"),
    ("+optimizer.make.betas=[0.9,0.9,0.9]", "expected a list of 2 finite numbers or Tensor, got [0.9,0.9,0.9]."),
    ("+optimizer.make.weight_decay=nan", "optimizer.make.weight_decay=nan: expected a finite number"),
    ("checkpoints=foo", "checkpoints=foo: expected one of all, last, none, got 'foo'."),
    ("samples=nan", "samples=nan: expected an integer >= 1 or null, got nan."),
]

SEVERAL += [
    (("net=torchvision", "net.name=vit_b_16"), "cannot be built for inputs of shape (1, 8, 8) (Wrong image height!"),
    (
        ("optimizer=sgd", "+optimizer.make.weight_decay=nan"),
        "optimizer.make.weight_decay=nan: expected a finite number",
    ),
    (("scheduler=cosine", "+scheduler.make.T_max=3"), "scheduler.length=T_max sets this argument"),
]

TABLE = [
    *(((option,), message) for option, message in (*UNKNOWN, *MISSING, *VALUES)),
    *SEVERAL,
    *(((option,), message) for option, message in (*NAMES, *OBJECTS)),
]
FAST = [TABLE[i] for i in (0, 2, 4, 5, 8, 12, 17, 25, 29, 35, 38, 44, 62, 67, 68)]


def outcome(folder, options):
    """Return ``ok``, or the message of a run that is refused. Any other error is a bug."""
    mine = [
        t for t in TINY if not any(o.lstrip("+~").split("=")[0] in (t.split("=")[0], t.split(".")[0]) for o in options)
    ]
    try:
        clbench.run([*mine, *options], folder, quiet=True)
    except (ConfigError, Unstable) as error:
        line = user_message(error)
        assert line and "\n" not in line
        return line
    return "ok"


@pytest.mark.parametrize("row", others_slow(TABLE, *FAST), ids=lambda row: " ".join(row[0]))
def test_an_option_no_run_can_have_is_refused(tmp_path, row):
    options, message = row
    assert message in outcome(tmp_path / "a", (*options, "dry_run=true"))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "row",
    others_slow(
        [
            ("+foo=1,2", "foo=1: unknown option foo. --help lists all options."),
            (
                "+hydra.foo=1",
                "hydra.foo=1: unknown option hydra.foo. Did you mean hydra.job? --help lists all options.",
            ),
            (
                "+hydra.launcher.foo=1",
                "unknown option hydra.launcher.foo. Try another launch=... or sweep=..., whose class",
            ),
            (
                "lam=interval(1,2)",
                "interval(...): expected values for a grid, got a function of a search. Try lam=1,10,",
            ),
            (
                "hydra/launcher=joblib hydra.launcher.n_jobs=0",
                "hydra.launcher.n_jobs=0: expected a number of processes",
            ),
            ("lam=range(1,3,0)", "lam=range(1,3,0): the values cannot be listed (range() arg 3 must not be zero)."),
        ],
        ("+foo=1,2", "foo=1: unknown option foo. --help lists all options."),
    ),
)
def test_a_sweep_is_refused_before_its_first_run(command, tmp_path, row):
    typed, message = row
    done = command(*typed.split(), *TINY, "-m", "output_dir=sweep")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "sweep").exists()


def test_a_key_in_a_yaml_of_the_user_is_refused(tmp_path):
    """A key at the top level to which another value refers is an option."""
    (tmp_path / "more/strategy").mkdir(parents=True)
    yaml = "# @package _global_\nlam: 1.0\nhalf: 0.5\nstrategy:\n  _target_: clbench.strategies.SI\n  lam: ${lam}\n"
    file = tmp_path / "more/strategy/mine.yaml"
    for line, message in (
        ("", "half=0.5: unknown option half."),
        ("  damping: ${half}\n", ""),
        ("  damping: ${half}\n  half: 1\n", "has no option half"),
    ):
        file.write_text(yaml + line, encoding="utf-8")
        with pytest.raises(ConfigError, match=message) if message else nullcontext():
            clbench.run(["strategy=mine", *TINY, "dry_run=true"], tmp_path / "a", tmp_path / "more", quiet=True)


@pytest.mark.parametrize(
    "row",
    others_slow(
        [
            (
                "output_dir=",
                "output_dir=: expected the path of a folder. Try output_dir=runs/a, or remove this option.",
            ),
            ("output_dir=' '", "expected the path of a folder."),
            ("output_dir=null", "output_dir=null: expected the path of a folder."),
            (
                "output_dir=~/x",
                """output_dir=~/x: a value with such characters needs quotes. Try 'output_dir="~/x"'.""",
            ),
            ("output_dir=a=b", """Try 'output_dir="a=b"'."""),
            ("output_dir=a,b", """output_dir=a,b: a value with a comma needs quotes. Try 'output_dir="a,b"'."""),
            ("data.split={'a':1}", "the keys of a dictionary are written without quotes. Try 'data.split={a:1}'."),
        ],
        ("output_dir=", "output_dir=: expected the path of a folder. Try output_dir=runs/a, or remove this option."),
    ),
)
def test_a_path_that_hydra_cannot_read_is_one_line(command, tmp_path, row):
    typed, message = row
    done = command(*TINY, typed)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", ["~/x", "a, b"])
def test_a_quoted_path_is_the_folder_of_the_run(command, tmp_path, path):
    done = command(*TINY, f'output_dir="{path}"', environment={"HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / path.replace("~/", "") / "metrics.json").exists()


# --- random compositions ------------------------------------------------------------------------------------------------

ODD = [
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "abc",
    "''",
    "[]",
    "[1]",
    "[a]",
    "[true]",
    "{a:1}",
    "1e30",
    "2",
    "0.5",
]
GROUPS = ("strategy", "scenario", "net", "optimizer", "scheduler", "logger")


def composition(seed):
    """Return random choices of some groups, and one to three options with random values."""
    draw = random.Random(seed)
    chosen = [draw.choice(files(group)) for group in draw.sample(GROUPS, 2)]
    keys = [key for key in top_level_options() if key not in ("output_dir", "dry_run", "data_dir", "compile")]
    for file in [*chosen, draw.choice(files("trainer"))]:
        keys += [key for key in declarations(file) if "." in key]
    keys += [key for key in declarations(files("data")[2]) if key.startswith("data.")]
    odd = [
        f"{draw.choice(['', '', '', '+', '~'])}{key}={draw.choice(ODD)}"
        for key in draw.sample(keys, draw.randint(1, 3))
    ]
    return [file.choice for file in chosen], [o.split("=")[0] if o[0] == "~" else o for o in odd]


def check_composition(folder, seed, *more):
    choices, options = composition(seed)
    threads = torch.get_num_threads()
    line = outcome(folder, ["+trainer.limit_train_batches=1", *choices, *options, *more])
    assert line, (choices, options)
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(2))
def test_random_options_are_planned_or_refused(tmp_path, seed):
    for number in range(12 * seed, 12 * (seed + 1)):
        check_composition(tmp_path / f"{number}", number, "dry_run=true")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(103, 105))
def test_random_options_train_a_step_or_are_refused(tmp_path, seed):
    for number in range(10 * seed, 10 * seed + 5):
        large = {"net=timm", "net=torchvision"} & {*composition(number)[0]}  # a ResNet takes minutes
        check_composition(tmp_path / f"{number}", number, *["dry_run=true"] * bool(large))
