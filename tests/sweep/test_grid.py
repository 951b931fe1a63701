"""The configurations of a grid are those that Hydra composes."""

from __future__ import annotations

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from clbench.config.compose import GridComposer, hydra_state, search_path, without_hydra
from clbench.config.options import conf_dir
from tests.conftest import others_slow


@pytest.fixture
def loader():
    with hydra_state(), hydra.initialize_config_dir(str(conf_dir()), job_name="train", version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


GRIDS = {
    "values": ("lam=1,1e3,null", "seed=range(0,2)"),
    "groups and values": ("strategy=ewc,nccl", "lam=1,2", "optimizer=sgd,adam"),
    "references": ("lr=${lam},0.1", "data.seed=7,${seed}", "data.name=${data_dir}/a,${oc.env:HOME},${now:%Y}"),
    "new and removed keys": ("+net.new=1,2", "++data.tasks=3", "~data.split.first", "++strategy.other=a,b"),
    "order": ("+net.new={a:1}", "net.new.a=2,3", "~net.new.a"),
    "lists and dictionaries": (
        "epochs=[1,2],3",
        "net={hidden:[3]},{hidden:[4,5]}",
        "+data.split.extra={a:{b:1}},{c:[]}",
    ),
    "quotes": ("data.name='a b','c,d','e=f'", 'strategy.include=["*.bias","x[0]"],null', "output_dir='mine (1)'"),
    "preset of a sweep": ("sweep=lam_curve", "strategy=mas", "steps=1,2"),
    "preset of an experiment": ("experiment=seed_mas,hsu2018_split_mnist", "data.tasks=2,3", "scenario=class"),
    "packages": ("trainer=debug", "logger=none,csv", "scheduler=cosine", "+scheduler.make.eta_min=0,1"),
    "Hydra's own options": ("hydra.job.name=a", "seed=0,1"),
    "a search path": (search_path([conf_dir().parent / "scripts"]), "seed=0,1"),
}


@pytest.mark.parametrize("name", others_slow(GRIDS, "values", "lists and dictionaries"))
def test_the_configurations_of_a_grid_are_those_of_hydra(loader, name):
    overrides = OverridesParser.create(loader).parse_overrides(list(GRIDS[name]))
    typed = [override.input_line for override in overrides if not override.is_sweep_override()]
    master = loader.load_configuration("train", typed, RunMode.MULTIRUN)
    assert master.output_dir  # its time is the same in all runs
    compose = GridComposer(loader, master)
    ((grid),) = BasicSweeper.split_arguments([o for o in overrides if not o.is_hydra_override()], None)
    for combination in grid:
        cfg, choices = compose(combination)
        whole = loader.load_sweep_config(master, combination)
        expected = without_hydra(whole)
        for resolve in (False, True):
            assert OmegaConf.to_container(cfg, resolve=resolve) == OmegaConf.to_container(expected, resolve=resolve)
        assert list(cfg) == list(expected)
        assert choices == whole.hydra.runtime.choices
        assert OmegaConf.is_struct(cfg) == OmegaConf.is_struct(expected)
    first, _ = compose(grid[0])
    first.seed = 99
    assert compose(grid[0])[0].seed != 99  # the configurations share no values


WRONG = ("nothing=1", "net.nothing=1", "+seed=1", "~nothing", "net=nothing", "+net=cnn", "net.hidden=[1")


@pytest.mark.parametrize("override", others_slow(WRONG, "nothing=1"))
def test_an_error_of_hydra_is_the_same_in_a_grid(loader, override):
    master = loader.load_configuration("train", [], RunMode.MULTIRUN)
    texts = []
    for compose in (GridComposer(loader, master), lambda lines: loader.load_sweep_config(master, lines)):
        with pytest.raises(HydraException) as error:
            compose(["lam=1", override])
        texts.append(str(error.value))
    assert texts[0] == texts[1]
