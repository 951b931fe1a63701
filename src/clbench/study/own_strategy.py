"""Compare a strategy of the user with those of a suite that was run before: ``clbench study benchmark strategy=NAME``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from omegaconf import DictConfig

from clbench.config.arguments import as_typed
from clbench.config.hashing import decisive, leaves
from clbench.config.options import ELSEWHERE, OPTIONS, options_of
from clbench.errors import ConfigError
from clbench.study.collect import final_cells
from clbench.study.definition import Row, Study
from clbench.study.overview import BASELINE
from clbench.study.parse import filled, load, names
from clbench.study.plan import Cell, overrides_of
from clbench.study.ranks import method_of
from clbench.study.runs import StudyRuns, divide


def load_suite(name: str) -> Study:
    """Return the study of a suite, such as digits or the yaml file of a study with parts.

    Raises:
        ConfigError: There is no such suite, or it is not valid.
    """
    shipped = [study.removeprefix("benchmark_") for study in names() if study.startswith("benchmark_")]
    if name not in shipped and not name.endswith(".yaml"):
        raise ConfigError(
            f"suite={name}: expected one of {', '.join(shipped)}, or the yaml file of a study with parts."
        )
    suite = load(study_of(name))
    if not suite.parts:
        raise ConfigError(f"suite={name}: expected a study with parts, whose rows are strategies.")
    return suite


def study_of(suite: str) -> str:
    """Return the name or file of the study that is a suite."""
    return suite if suite.endswith(".yaml") else f"benchmark_{suite}"


@dataclass(frozen=True)
class Wanted:
    """What the user wants to compare.

    Attributes:
        strategy: Choice of the group ``strategy``.
        values: Values of the options of the strategy, several for those to be tuned.
        suite: Name of the suite.
        parts: Parts of the suite, all if empty.
        elsewhere: Overrides that do not affect the results, those of the launcher included.
    """

    strategy: str
    values: Mapping[str, Sequence[Any]]
    suite: str
    parts: tuple[str, ...]
    elsewhere: tuple[str, ...]


def wanted(overrides: Sequence[str]) -> Wanted:
    """Return what the overrides of the command say, such as ``strategy=mine lam=1,10,100 suite=digits launch=serial``.

    Raises:
        ConfigError: There is no strategy, or an override is none of the strategy.
    """
    elsewhere, typed = divide(overrides)
    values = {}
    for override in OverridesParser.create().parse_overrides(typed):
        key = override.key_or_group
        several = override.is_sweep_override()
        values[key] = list(override.sweep_iterator(Transformer.identity)) if several else [override.value()]
    strategy, suite = values.pop("strategy", []), values.pop("suite", ["digits"])
    parts = [str(part) for each in values.pop("parts", []) for part in (each if isinstance(each, list) else [each])]
    if len(strategy) != 1 or len(suite) != 1:
        raise ConfigError(
            "benchmark: expected one strategy, such as clbench study benchmark strategy=mine suite=digits."
        )
    elsewhere += [text for text in typed if text.partition("=")[0].partition(".")[0] in ELSEWHERE]
    own = {key: each for key, each in values.items() if key.partition(".")[0] not in ELSEWHERE}
    for key in own:
        if key not in OPTIONS and not key.startswith("strategy."):
            raise ConfigError(
                f"{key}: expected an option of the strategy ({', '.join(OPTIONS)} or strategy.NAME), because data, net and "
                "training are the same for all strategies."
            )
    return Wanted(str(strategy[0]), own, str(suite[0]), tuple(parts), tuple(elsewhere))


class Benchmark:
    """Benchmark of one strategy.

    Args:
        suite: Study of the shipped strategies.
        shipped: Content of study.json of the suite.
        wanted: What the user wants to compare.
        runs: Runs of the user, which compose the configurations.

    Attributes:
        study: Study with a row per part, and the two shipped runs that are repeated.
    """

    def __init__(self, suite: Study, shipped: Mapping[str, Any], wanted: Wanted, runs: StudyRuns) -> None:
        if wrong := [part for part in wanted.parts if part not in suite.parts]:
            raise ConfigError(f"parts={wrong[0]}: expected parts of {suite.name}: {', '.join(suite.parts)}.")
        self.shipped, self.wanted = shipped, wanted
        self.parts = {part: each for part, each in suite.parts.items() if part in (wanted.parts or suite.parts)}
        taken = {method_of(row) for row in shipped["rows"]}
        self.name = f"{wanted.strategy} (own)" if wanted.strategy in taken else wanted.strategy
        self.repeated = self._repeated()
        self.changed: dict[str, None] = {}  # an ordered set
        own = [self._row(suite, part, runs) for part in self.parts]
        again = [
            Row(f"repeated: {row['name']}", tuple(cell["overrides"]), (cell["seed"],)) for row, cell in self.repeated
        ]
        self.study = replace(suite, name=f"{suite.name}-{wanted.strategy}", rows=(*own, *again), claims=(), parts={})

    def _row(self, suite: Study, part: str, runs: StudyRuns) -> Row:
        """Return the row of the user's strategy in a part, with the options that the suite gives to every strategy."""
        overrides = (*self.parts[part], f"strategy={self.wanted.strategy}")
        cfg = runs.planned(Cell(overrides, 0)).cfg
        self._note_changes(cfg, runs.planned(Cell((*self.parts[part], f"strategy={BASELINE}"), 0)).cfg)
        has = options_of(cfg)
        tuned = any(len(values) > 1 for values in self.wanted.values.values())
        common = {key: values for key, values in suite.own.items() if key in has and not (tuned and len(values) > 1)}
        values = {**common, **self.wanted.values}
        fixed = {key: each[0] for key, each in values.items() if len(each) == 1}
        grid = {key: tuple(each) for key, each in values.items() if len(each) > 1}
        row = Row(f"{part}, {self.name}", (*overrides, *overrides_of(fixed)), grid=grid, part=part)
        return filled(row, suite)

    def _note_changes(self, cfg: DictConfig, usual: DictConfig) -> None:
        """Note the options outside the strategy that its yaml changes, because they change the protocol."""
        ours, others = (dict(leaves(decisive(each))) for each in (cfg, usual))
        for key in sorted(ours.keys() | others.keys()):
            if key.partition(".")[0] not in ("strategy", *OPTIONS) and ours.get(key) != others.get(key):
                self.changed[f"{key}={as_typed(ours.get(key))} instead of {as_typed(others.get(key))}"] = None

    def _repeated(self) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Return two rows of the suite with one of their final runs: fine-tuning, and the first with a grid in the last part."""
        first, *_, last = [*self.parts, *self.parts]
        rows = [row for row in self.shipped["rows"] if row["part"] == first and method_of(row) == BASELINE]
        rows += [row for row in self.shipped["rows"] if row["part"] == last and row["grid"]][:1]
        return [(row, final_cells(row)[min(final_cells(row))]) for row in rows]

    def compared(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of study.json of the comparison, given that of ``study``."""
        own = [row for row in found["rows"] if row.get("part")]
        again = [row for row in found["rows"] if not row.get("part")]
        shipped = [row for row in self.shipped["rows"] if row["part"] in self.parts]
        origin = (
            f"The values of the other strategies were not measured again. They are those of `{self.shipped['command']}` "
            f"({self.shipped['date']}, commits {', '.join(self.shipped['commits'])})."
        )
        return {
            **found,
            "title": f"{self.shipped['title']}: {self.name}",
            "text": "\n\n".join(filter(None, (self.shipped["text"], origin))),
            "parts": list(self.parts),
            "own": self.name,
            "changed": list(self.changed),
            "repeated": [
                {
                    "row": row["name"],
                    "seed": cell["seed"],
                    "committed": list(cell["values"].values()),
                    "now": list(now["cells"][0]["values"].values()),
                }
                for (row, cell), now in zip(self.repeated, again, strict=True)
            ],
            "baseline_seconds": {
                row["part"]: now["seconds"]
                for (row, _), now in zip(self.repeated, again, strict=True)
                if method_of(row) == BASELINE
            },
            "rows": [*shipped, *own],
        }
