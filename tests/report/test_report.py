"""Reports: reading run folders, statistics, and written files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clbench.errors import ConfigError
from clbench.metrics.interval import half_width
from clbench.metrics.registry import BUILT_IN
from clbench.report.__main__ import main
from clbench.report.benchmark import Benchmark, lead_context
from clbench.report.html_tables import Cell, Table, strategies_table
from clbench.report.page import (
    excluded_counts,
    failures_card,
    make_environment,
    run_counts,
    versions_card,
    warnings_table,
)
from clbench.report.provenance import count_commands, find_missing_runs
from clbench.report.style import assign_colours, line_style
from clbench.report.summary import (
    paired_difference,
    paired_differences,
    pareto_front,
    select_lam,
    selected_rows,
    summarize_seeds,
)
from clbench.report.tables import escape_tex, terminal_tables, write_tex
from clbench.runs.names import REFERENCES, format_value
from clbench.runs.read import chance, read
from clbench.sweep.results import REFERENCES as REFERENCES_OF_A_SWEEP
from tests.conftest import replace_in
from tests.make_finished_runs import FINISHED_RUNS, edit


@pytest.fixture(scope="session")
def finished_sweep() -> Path:
    """Return a sweep of 30 complete runs: fine-tuning, EWC with two Fishers and two lams, joint from scratch, five seeds."""
    return FINISHED_RUNS / "task_incremental"


@pytest.fixture
def copied(finished_sweep, tmp_path) -> Path:
    """Return a copy of the sweep, which a test may modify."""
    return Path(shutil.copytree(finished_sweep, tmp_path / "sweep"))


@pytest.fixture(scope="session")
def reported(finished_sweep, tmp_path_factory) -> Path:
    """Return the report of the finished sweep."""
    return main(
        [str(finished_sweep), "--output", str(tmp_path_factory.mktemp("out") / "report"), "--title", "A <sweep>"]
    )


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def run_folder(sweep: Path, number: int) -> Path:
    """Return a run folder of a sweep, by its position in sweep.json."""
    return sweep / list(json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["runs"])[number]


def texts(table: Table) -> list[str]:
    """Return the texts of the cells of a table of the page, row by row."""
    return [cell.text for row in table.rows for cell in row.cells]


def change(folder: Path, **values: object) -> None:
    (folder / "metrics.json").write_text(json.dumps({**metrics(folder), **values}), encoding="utf-8")


# ---- reading


def test_a_run_is_a_row_with_the_numbers_of_its_metrics_json(finished_sweep):
    frame = read(finished_sweep)
    assert len(frame) == 30 and set(frame.status) == {"complete"}
    for row in frame.itertuples():
        there = metrics(Path(row.folder))
        assert row.average_accuracy == there["average_accuracy"]
        assert row.validation_average_accuracy == there["validation"]["average_accuracy"]
        assert row.nll == pytest.approx(np.mean([task["nll"] for task in there["per_task"]]))
        assert row.seconds_total == there["seconds"]["total"]
        assert row.bytes == max(task["bytes"] for task in there["importance"])
        assert row.seed == there["seed"] and row.strategy == there["strategy"]["name"]
        assert np.array_equal(row.accuracy_matrix, there["accuracy_matrix"])


def test_setups_are_named_by_the_options_that_differ(finished_sweep):
    frame = read(finished_sweep)
    assert set(frame.benchmark) == {"permuted_digits, task-incremental, mlp"}
    ewc = {f"ewc fisher={fisher} lam={lam}" for fisher in ("exact", "empirical") for lam in ("1", "1e3")}
    assert set(frame.setup) == {"finetune", "joint_from_scratch", *ewc}
    assert set(frame.groupby("setup").seed.apply(sorted).map(tuple)) == {(0, 1, 2, 3, 4)}
    assert frame[frame.strategy == "finetune"].lam.isna().all()


def test_other_options_that_differ_separate_benchmarks(finished_sweep, tmp_path):
    """Options of the strategy separate setups, and all other options separate benchmarks."""
    for number, rate in enumerate(("0.001", "0.01")):
        copy = Path(shutil.copytree(run_folder(finished_sweep, 0), tmp_path / str(number)))
        replace_in(copy / "config.json", '"lr": 0.001', f'"lr": {rate}')
    names = set(read(tmp_path).benchmark)
    assert names == {f"permuted_digits, task-incremental, mlp, lr={rate}" for rate in ("0.001", "0.01")}


def test_folder_names_are_ignored(finished_sweep, tmp_path):
    shutil.copytree(run_folder(finished_sweep, 0), tmp_path / "mas_lam=9_seed=77")
    row = read(tmp_path).iloc[0]
    assert (row.strategy, row.seed) == ("finetune", 0) and np.isnan(row.lam)


def test_overlapping_folders_are_read_once_at_any_depth(copied):
    assert len(read([copied, run_folder(copied, 3), copied.parent, copied / ".."])) == 30


def test_the_same_run_twice_counts_once(finished_sweep, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run_folder(finished_sweep, 0), tmp_path / name)
    frame = read(tmp_path)
    assert list(frame.status) == ["complete", "repeated"]
    assert list(summarize_seeds(frame).seeds) == [1]


def test_intransigence_uses_the_reference_of_the_same_seed(finished_sweep):
    frame = read(finished_sweep).set_index(["setup", "seed"])
    for (_, seed), row in frame.iterrows():
        reference = np.diag(frame.loc[("joint_from_scratch", seed)].accuracy_matrix)
        assert row.intransigence == pytest.approx(np.mean(reference - np.diag(row.accuracy_matrix)))
    assert REFERENCES == REFERENCES_OF_A_SWEEP


def test_without_a_reference_there_is_no_intransigence(finished_sweep):
    assert read([run_folder(finished_sweep, 0), run_folder(finished_sweep, 1)]).intransigence.isna().all()


def test_a_folder_without_runs_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: expected a folder with runs, found none."):
        read(tmp_path)
    with pytest.raises(ConfigError, match="but there is no such folder"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read"),
        ("[]", "metrics.json cannot be read: expected an object, got []"),
        ('{"status": "complete"}', "metrics.json cannot be read: accuracy_matrix is missing"),
        (None, "no metrics.json"),
    ],
)
def test_a_run_that_cannot_be_read_is_listed_with_the_reason(copied, text, why):
    """The other runs are still reported."""
    file = run_folder(copied, 7) / "metrics.json"
    file.write_text(text, encoding="utf-8") if text is not None else file.unlink()
    frame = read(copied)
    assert list(frame[frame.status == "failed"].folder) == [str(run_folder(copied, 7))]
    assert why in frame.problem.dropna().item()
    assert (frame.status == "complete").sum() == 29
    assert str(run_folder(copied, 7)) in texts(failures_card(frame, [])["table"])


def test_an_unfinished_run_is_excluded(copied):
    r = metrics(run_folder(copied, 4))["accuracy_matrix"]
    change(run_folder(copied, 4), status="running", accuracy_matrix=[r[0], [None, None]])
    row = read(copied).iloc[4]
    assert row.status == "running" and row.problem == "1 of 2 tasks done: running or interrupted"


def test_a_run_that_failed_before_it_wrote_anything_is_listed(copied):
    shutil.rmtree(run_folder(copied, 6))
    run_folder(copied, 6).mkdir()
    frame = read(copied)
    assert frame.iloc[6].status == "failed" and frame.iloc[6].problem.startswith("no metrics.json")
    assert find_missing_runs(frame) == []


def test_requested_runs_are_missing_but_not_merged_duplicates(copied):
    """The runs that a sweep requested are known from its record."""
    assert find_missing_runs(read(copied)) == []
    shutil.rmtree(run_folder(copied, 0))
    assert find_missing_runs(read(copied)) == [(str(copied), "strategy=finetune lam=1 fisher=exact seed=0")]


def test_the_command_of_a_sweep_is_listed_once(finished_sweep):
    ((command, runs),) = count_commands(read(finished_sweep)).items()
    assert runs == 30
    assert command.startswith("python -m clbench.train -m strategy=finetune,ewc,joint_from_scratch lam=1,1e3")


@pytest.mark.parametrize(
    ("sizes", "scenario", "expected"),
    [([2, 2, 2], "class", [1 / 2, 1 / 4, 1 / 6]), ([2, 4], "task", [1 / 2, 3 / 8]), ([5, 5], "domain", [0.2, 0.2])],
)
def test_chance_is_guessing_among_the_outputs_that_compete(sizes, scenario, expected):
    assert chance(sizes, scenario) == pytest.approx(expected)


def test_without_config_json_the_files_of_hydra_are_read():
    (row,) = read(Path(__file__).parents[1] / "older_run").itertuples()
    assert row.status == "complete" and row.seed == 0 and row.lam == 1
    assert row.setup == "ewc lam=1" and row.overrides[0] == "strategy=ewc"


@pytest.mark.slow
def test_thousands_of_folders_are_read(finished_sweep, tmp_path):
    run = run_folder(finished_sweep, 5)
    config = (run / "config.json").read_text(encoding="utf-8")
    for seed in range(2000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "config.json").write_text(config.replace('"seed": 0,\n', f'"seed": {seed},\n', 1), encoding="utf-8")
        shutil.copy(run / "metrics.json", folder)
    frame = read(tmp_path)
    assert frame.seed.nunique() == 2000 and frame.setup.nunique() == 1


# ---- statistics


def test_means_and_intervals_are_those_of_student(finished_sweep):
    frame = read(finished_sweep)
    setups = summarize_seeds(frame).set_index("setup")
    # lams ascend, so that the smallest is selected in a tie
    assert all(lams.dropna().is_monotonic_increasing for _, lams in setups.groupby("method").lam)
    for setup, runs in frame.groupby("setup"):
        for metric in ("average_accuracy", "forgetting", "seconds_total"):
            low, high = stats.t.interval(0.95, len(runs) - 1, runs[metric].mean(), stats.sem(runs[metric]))
            assert setups.loc[setup, metric] == pytest.approx((low + high) / 2)
            assert setups.loc[setup, f"{metric}_ci"] == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval():
    assert np.isnan(half_width(np.array([np.nan, 0.1]), np.array([1, 1]))).all()
    assert half_width(np.array([1.0]), np.array([4]))[0] == pytest.approx(3.182446 / 2)


def table(*rows: tuple[str, float, int, float, float]) -> pd.DataFrame:
    columns = ["method", "lam", "seeds", "validation_average_accuracy", "average_accuracy"]
    frame = pd.DataFrame(rows, columns=columns).assign(benchmark="s", quality="accuracy", average_accuracy_ci=0.01)
    return frame.assign(strategy=frame.method, setup=frame.method + frame.lam.astype(str))


def test_lam_is_selected_on_validation_data_the_oracle_on_test():
    setups = table(("ewc", 1, 3, 0.8, 0.7), ("ewc", 10, 3, 0.7, 0.9), ("ewc", 100, 2, 0.99, 0.99))
    leak_free = select_lam(setups, "validation")
    assert list(leak_free.selected) == [True, False, False]  # lam=100 has fewer seeds and is not compared
    assert list(leak_free.oracle) == [False, True, False]
    assert list(select_lam(setups, "test").selected) == [False, True, False]


def test_test_data_select_lam_only_on_request():
    setups = table(("ewc", 1, 3, np.nan, 0.7), ("ewc", 10, 3, np.nan, 0.9))
    none_selected = select_lam(setups, "validation")
    assert not none_selected.selected.any() and len(selected_rows(none_selected)) == 2
    assert len(selected_rows(select_lam(setups, "test"))) == 1


def answer(*rows: tuple[str, float, int, float, float]) -> str:
    setups = select_lam(table(*rows), "validation")
    runs = pd.DataFrame({"chance": [[0.5, 0.25]]})
    benchmark = Benchmark("s", setups, selected_rows(setups), runs, setups[:0], "validation", BUILT_IN)
    html = make_environment().get_template("lead.html").render(lead=lead_context(benchmark))
    return re.sub("<[^>]*>", "", html)


def test_the_answer_compares_the_best_method_with_joint_training():
    """The distance is the part of the way from fine-tuning to joint training."""
    text = answer(
        ("finetune", 0, 3, 0.4, 0.4), ("joint", 0, 3, 0.9, 0.9), ("ewc", 1, 3, 0.6, 0.6), ("mas", 1, 3, 0.8, 0.8)
    )
    assert "Best of 2 methods: mas1 reaches average accuracy 0.800 ± 0.010 over 3 seeds" in text
    assert "chance 0.250" in text and "80% of the way from fine-tuning to joint training" in text


def test_the_answer_says_when_no_method_beats_fine_tuning():
    tuned = ("finetune", 0, 3, 0.7, 0.7)
    assert "No method beats fine-tuning (0.700). Best of 2 methods: mas" in answer(
        tuned, ("ewc", 1, 3, 0.5, 0.5), ("mas", 1, 3, 0.6, 0.6)
    )
    assert "No method beats" not in answer(tuned, ("ewc", 1, 3, 0.8, 0.8))


@pytest.mark.parametrize(("best", "end"), [(0, "smallest"), (1, None), (2, "largest")])
def test_the_answer_says_when_lam_is_the_last_of_those_tried(best, end):
    text = answer(*(("ewc", 10**i, 3, 0.5 + 0.2 * (i == best), 0.6) for i in range(3)))
    assert ("lam that was tried" in text and "one may be better" in text) is bool(end)
    assert not end or f"It is the {end} lam that was tried" in text


def test_the_pareto_front_has_the_setups_that_no_other_beats():
    learning, forgetting = [0.9, 0.8, 0.7, 0.85, 0.9, 0.6], [0.5, 0.1, 0.2, 0.6, 0.4, 0.1]
    beaten = {
        i
        for i in range(6)
        for j in range(6)
        if learning[j] >= learning[i] and forgetting[j] <= forgetting[i]
        and (learning[j], forgetting[j]) != (learning[i], forgetting[i])
    }  # fmt: skip
    assert pareto_front(learning, forgetting) == [1, 4] and set(range(6)) - beaten == {1, 4}


def test_paired_differences_are_the_paired_t_test(finished_sweep):
    frame = read(finished_sweep).sample(frac=1, random_state=0)  # the seeds of two setups are in different orders
    rows = selected_rows(select_lam(summarize_seeds(frame), "validation"))
    pairs = paired_differences(frame, rows)
    for some in (pairs, paired_differences(frame, rows[::-1])):  # differences above and below 0
        assert some.average_accuracy.abs().is_monotonic_decreasing
    assert len(pairs) == 4 * 3 / 2 and set(pairs.seeds) == {5}
    by_setup = {setup: runs.set_index("seed").sort_index() for setup, runs in frame.groupby("setup")}
    for row in pairs.itertuples():
        a, b = by_setup[row.a].average_accuracy, by_setup[row.b].average_accuracy
        test = stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert row.average_accuracy == pytest.approx((a - b).mean())
        assert row.average_accuracy_ci == pytest.approx((interval.high - interval.low) / 2)
        assert row.average_accuracy_p == pytest.approx(test.pvalue, nan_ok=True)


def test_four_seeds_are_too_few_for_paired_differences(finished_sweep):
    """Runs that are not complete do not count."""
    frame = read(finished_sweep)
    rows = selected_rows(select_lam(summarize_seeds(frame), "validation"))
    assert paired_differences(frame[frame.seed < 4], rows).empty
    assert paired_differences(frame.assign(status=frame.status.where(frame.seed < 4, "running")), rows).empty
    assert np.isnan(paired_difference(pd.Series([0.1, 0.1]), "m")["m_p"])


# ---- the page as plain data


def printed_as_best(rows):
    """The setups with the best printed average accuracy, without joint training, which is a reference."""
    printed = rows[~rows.strategy.isin(REFERENCES)].set_index("setup").average_accuracy.map("{:.3f}".format)
    return list(printed.index[printed == printed.max()])


def test_cells_of_the_table_of_strategies_are_plain_data(finished_sweep):
    frame = read(finished_sweep)
    rows = selected_rows(select_lam(summarize_seeds(frame), "validation"))
    table = strategies_table(rows, BUILT_IN, 0.1, assign_colours(rows.strategy))
    first, row = table.rows[0], rows.iloc[0]
    assert first.cells[0] == Cell("joint_from_scratch", is_reference=True, colour="--c-joint-from-scratch")
    assert first.cells[1] == Cell("-", sort="") and first.cells[2] == Cell("5") and first.css == "reference"
    accuracy, half = row.average_accuracy, row.average_accuracy_ci
    assert first.cells[3] == Cell(f"{accuracy:.3f}", f"{accuracy:.10g}", f"{half:.3f}")
    bold = [[cell.is_bold for cell in row.cells] for row in table.rows]
    metrics = [heading.text for heading in table.headings]
    best = printed_as_best(rows)
    assert [row[metrics.index("average accuracy")] for row in bold] == [*rows.setup.isin(best), False]
    extra = {heading.text for heading in table.headings if heading.is_extra}
    assert {"min accuracy", "backward transfer"} <= extra and not {"average accuracy", "forgetting", "lam"} & extra
    assert {heading.text for heading in table.headings if not heading.is_ascending} == {
        metric.heading for metric in BUILT_IN.values() if metric.higher_is_better
    } - {"forward transfer"}
    assert table.rows[-1].cells[0] == Cell("chance") and table.rows[-1].cells[3] == Cell("0.100", "0.1")


def test_excluded_runs_are_listed_with_the_reason(copied):
    """These are failed, unfinished, repeated and missing runs."""
    shutil.copytree(run_folder(copied, 1), copied / "again")
    shutil.rmtree(run_folder(copied, 2))
    (run_folder(copied, 3) / "metrics.json").unlink()
    (run_folder(copied, 3) / "failed.txt").write_text("weights are not finite\nTraceback\n", encoding="utf-8")
    change(run_folder(copied, 4), status="running")
    frame = read(copied)
    table = failures_card(frame, find_missing_runs(frame))["table"]
    lines = {(row.cells[3].text, row.cells[4].text) for row in table.rows}
    assert lines == {
        ("repeated", "same configuration and seed as an earlier run, so it is not counted"),
        ("failed", "weights are not finite"),
        ("running", "2 of 2 tasks done: running or interrupted"),
        ("missing", "requested by the sweep, but its folder does not exist"),
    }
    counts = {count["noun"]: count["number"] for count in [*run_counts(frame), *excluded_counts(frame, missing=1)]}
    assert counts == {
        **{"complete runs": "27", "setups": "6", "seeds": "5"},
        **{"unfinished": "1", "failed": "1", "repeated": "1", "missing": "1"},
    }


def test_some_failed_runs_are_listed_and_all_are_counted(finished_sweep):
    frame = pd.concat([read(finished_sweep).assign(status="failed")] * 10)
    card = failures_card(frame, [("sweep", "seed=9")])
    assert len(card["table"].rows) == 201
    assert card["note"] == "These runs are excluded from all statistics. 100 more are not listed."


def test_warnings_of_complete_runs_are_listed_once_per_kind(copied):
    assert warnings_table(read(copied)) is None
    for number, text in ((0, "first"), (1, "second")):
        change(run_folder(copied, number), warnings=[{"kind": "penalty", "text": text}])
    assert texts(warnings_table(read(copied))) == ["penalty", "2", "finetune", "first"]


def test_several_versions_of_a_package_are_noted(copied):
    card = versions_card(read(copied))
    assert card["note"] == ""
    versions = metrics(run_folder(copied, 0))["versions"]
    change(run_folder(copied, 0), versions={**versions, "torch": "1.0"})
    card = versions_card(read(copied))
    assert card["note"] == "Runs with different versions of torch are averaged together."
    assert f"1.0 (1 run), {versions['torch']} (29 runs)" in texts(card["table"])


# ---- written files


class Page(HTMLParser):
    """Parser of tables as rows of texts, of ids, and of every address that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and not value.startswith(
                ("#", "data:")
            ):
                self.loads.append(value)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.in_cell = True
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def test_the_page_is_one_file_that_loads_nothing(reported):
    text = (reported / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert not re.search(r"https?:|@import|url\((?!#)|<link|<iframe|<script src", text)
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(page.ids)
    assert len(text) < 1_000_000
    assert "prefers-color-scheme: dark" in text and "A &lt;sweep&gt;" in text


def test_a_page_of_several_benchmarks_links_to_each_one(tmp_path):
    """No two figures of the page share an id."""
    out = main([str(FINISHED_RUNS), "--output", str(tmp_path / "out")])
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(page.ids)
    links = re.search(r'<nav aria-label="benchmarks">(.*?)</nav>', text, re.DOTALL)[1]
    names = ["permuted_digits, task-incremental, mlp, epochs=10", "split_digits, class-incremental, mlp, epochs=1"]
    assert re.findall(r'<a href="#(s\d)">(.*?)</a>', links) == [("s0", names[0]), ("s1", names[1])]
    assert (out / "figures/0_ranking.svg").exists() and (out / "figures/1_ranking.svg").exists()


def test_everything_on_the_page_but_figures_is_escaped(copied, tmp_path):
    evil = "<img src=x>&\"'"
    change(run_folder(copied, 0), warnings=[{"kind": evil, "text": evil}])
    (run_folder(copied, 1) / "metrics.json").unlink()
    (run_folder(copied, 1) / "failed.txt").write_text(evil, encoding="utf-8")
    edit(run_folder(copied, 2) / "config.json", overrides=[f"data.name={evil}"])
    shutil.copytree(run_folder(copied, 2), tmp_path / evil)
    out = main([str(copied), str(tmp_path / evil), "--output", str(tmp_path / "out"), "--title", evil])
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert Page(text).text.count("<img src=x>") >= 6
    templates = make_environment()
    sources = [templates.loader.get_source(templates, name)[0] for name in templates.list_templates()]
    assert sum(source.count("|safe") for source in sources) == 1


def test_the_table_of_strategies_has_the_computed_statistics(reported, finished_sweep):
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    frame = read(finished_sweep)
    rows = selected_rows(select_lam(summarize_seeds(frame), "validation"))
    heads, *body, guess = page.tables[0]
    assert heads[:4] == ["strategy", "lam", "seeds", "average accuracy"]
    for row, line in zip(rows.itertuples(), body, strict=True):
        assert line[0].startswith(row.strategy) and line[2] == "5"
        assert line[3] == f"{row.average_accuracy:.3f}± {row.average_accuracy_ci:.3f}"
        assert line[1] == ("-" if np.isnan(row.lam) else format_value(row.lam))
    assert guess[0] == "chance" and guess[3] == "0.100"
    assert "lam is selected on validation data" in page.text


def test_every_part_is_on_the_page(reported):
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    for title in (
        "Strategies", "Average accuracy", "lam", "Accuracy over tasks", "Forgetting against learning", "Accuracy matrices",
        "Paired differences", "All 6 setups", "Commands", "Versions", "Meaning of the columns",
    ):  # fmt: skip
        assert title in page.text
    assert "python -m clbench.train -m strategy=finetune,ewc,joint_from_scratch" in page.text
    assert "Failed and missing runs" not in page.text
    oracle = next(t for t in page.tables if "lam, test oracle" in t[0])
    assert [line[0] for line in oracle[1:]] == ["ewc fisher=empirical", "ewc fisher=exact"]


def test_a_number_appears_over_each_point(reported):
    text = (reported / "report.html").read_text(encoding="utf-8")
    for title in ("ewc fisher=exact lam=1e3", "finetune, seed 3", "joint_from_scratch: learning accuracy"):
        assert re.search(rf"<use [^>]*><title>{title}", text)


def test_summary_csv_has_every_setup_in_full_precision(reported, finished_sweep):
    there = pd.read_csv(reported / "summary.csv")
    setups = select_lam(summarize_seeds(read(finished_sweep)), "validation")
    assert len(there) == 6
    for name in ("average_accuracy", "average_accuracy_ci", "lam", "seconds_total", "intransigence"):
        np.testing.assert_allclose(there[name], setups[name], rtol=1e-12)
    assert list(there.selected) == list(setups.selected)
    for name in ("strategy", "fisher"):
        assert list(there[name].dropna()) == list(setups[name].dropna())


def test_summary_tex_is_balanced_and_escape_tex(reported):
    text = (reported / "summary.tex").read_text(encoding="utf-8")
    body = re.sub(r"(?m)^%.*\n", "", text)
    assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 1
    unescaped = re.sub(r"\\.", "", body)
    assert unescaped.count("{") == unescaped.count("}") and unescaped.count("$") % 2 == 0
    assert r"joint\_from\_scratch" in body and not re.search(r"[_%#]", unescaped)
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 5 and len({line.count(" & ") for line in lines}) == 1
    caption = next(line for line in text.splitlines() if line.startswith("% Mean"))
    assert caption == (
        "% Mean and half-width of the 95 % Student t interval over 5 seeds. Best values bold. The strength of each penalty was "
        "selected by the average over all tasks on validation data."
    )
    assert "second" not in body
    assert escape_tex(r"a_b%\c") == r"a\_b\%\textbackslash{}c"


def test_the_best_accuracy_is_bold(finished_sweep, tmp_path):
    """In the LaTeX table and in the terminal, and so are all that are printed as this value."""
    rows = selected_rows(select_lam(summarize_seeds(read(finished_sweep)), "validation"))
    best = printed_as_best(rows)
    assert len(best) > 1
    write_tex(rows, BUILT_IN, "validation", tmp_path / "summary.tex")
    lines = [line.split(" & ") for line in (tmp_path / "summary.tex").read_text(encoding="utf-8").splitlines()]
    assert [line[0] for line in lines if len(line) > 2 and "mathbf" in line[2]] == list(map(escape_tex, best))
    (table,) = terminal_tables(rows, BUILT_IN)
    names, accuracies = (list(table.columns[column].cells) for column in (0, 2))
    assert [str(n) for n, a in zip(names, accuracies, strict=True) if "bold" in str(a.style)] == best


def test_figures_are_files_too(reported):
    names = {"ranking", "lam_curves", "over_tasks", "tradeoff", "matrices"}
    assert {file.name for file in (reported / "figures").iterdir()} == {
        f"{n}.{end}" for n in names for end in ("png", "svg", "pdf")
    }
    assert b"/FontFile2" in (reported / "figures/ranking.pdf").read_bytes()  # the font is embedded as TrueType
    assert (reported / "figures" / "ranking.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_columns_that_are_hidden_at_first_have_a_switch(reported):
    page = (reported / "report.html").read_text(encoding="utf-8")
    assert page.count("> all columns</label>") == 2  # the table of strategies, and that of all setups
    assert re.search(r'<th scope="col" class="x" title="[^"]*"[^>]*><button type="button">min accuracy', page)
    assert not re.search(r'<th scope="col" class="x"[^>]*><button type="button">average accuracy', page)


def test_figures_have_the_given_width_and_the_page_its_own(finished_sweep, reported, tmp_path):
    out = main([str(finished_sweep), "--output", str(tmp_path / "out"), "--width", "3.3", "--title", "clbench report"])
    for file in (out / "figures").glob("*.svg"):
        points = float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', file.read_text(encoding="utf-8"))[1])
        assert points <= 3.3 * 72 + 0.1, file
    svgs = [
        re.findall(r"<svg.*?</svg>", (o / "report.html").read_text(encoding="utf-8"), re.S) for o in (out, reported)
    ]
    assert svgs[0] == svgs[1]


@pytest.mark.parametrize("width", ["0.1", "100"])
def test_a_width_that_is_not_in_inches_is_refused(finished_sweep, tmp_path, width, capsys):
    with pytest.raises(SystemExit):
        main([str(finished_sweep), "--output", str(tmp_path / "out"), "--width", width])
    assert "expected 2 to 20 inches" in capsys.readouterr().err


def test_lines_differ_in_marker_and_dashes():
    styles = [line_style(number, 8) for number in range(8)]
    assert len({style["marker"] for style in styles}) == 8
    assert [style["lw"] for style in styles] == sorted((style["lw"] for style in styles), reverse=True)


def test_the_terminal_shows_the_table_and_what_failed(copied, tmp_path, capsys):
    (run_folder(copied, 7) / "metrics.json").write_text("{", encoding="utf-8")
    main([str(copied), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "average accuracy" in out and "finetune" in out
    assert f"skipped: {run_folder(copied, 7)} (metrics.json cannot be read: " in out
    assert f"report in {tmp_path / 'out' / 'report.html'}" in out


def test_selection_on_test_data_is_labelled_an_oracle(finished_sweep, tmp_path):
    out = main([str(finished_sweep), "--output", str(tmp_path / "out"), "--select", "test"])
    assert "an oracle and not a result" in (out / "report.html").read_text(encoding="utf-8")


def test_runs_of_a_sweep_that_were_not_requested_are_not_missing(finished_sweep, tmp_path):
    out = main(
        [str(run_folder(finished_sweep, 0)), str(run_folder(finished_sweep, 1)), "--output", str(tmp_path / "out")]
    )
    assert "missing" not in re.sub(
        "<style>.*</style>|<script>.*</script>", "", (out / "report.html").read_text(encoding="utf-8"), flags=re.S
    )
    assert "was selected" not in (out / "summary.tex").read_text(encoding="utf-8")  # no lam was selected


def test_a_file_as_output_of_a_report_is_refused(finished_sweep, copied, tmp_path):
    """A sweep.json that is not the record of a sweep is ignored."""
    (copied / "sweep.json").write_text("[]", encoding="utf-8")
    assert len(read(copied)) == 30
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="--output .*file: expected a folder, got a file or a path below a file"):
        main([str(finished_sweep), "--output", str(tmp_path / "file")])


def test_no_complete_run_gives_one_line(copied, tmp_path):
    for file in copied.glob("*/metrics.json"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"got 30 incomplete ones. .*/finetune-seed0-.*: no metrics.json"):
        main([str(copied), "--output", str(tmp_path / "out")])


def test_class_incremental_reports_show_chance_and_references(tmp_path):
    """The references are fine-tuning and joint training from scratch."""
    out = main([str(FINISHED_RUNS / "class_incremental"), "--output", str(tmp_path / "out")])
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert {line[0].removesuffix("reference") for line in page.tables[0][1:]} == {
        "finetune",
        "ewc",
        "joint_from_scratch",
        "chance",
    }
    assert page.tables[0][-1][page.tables[0][0].index("average accuracy")] == "0.100"
    assert re.search(r"fine-tuning 0\.\d+, joint from scratch 0\.\d+, chance 0\.100", page.text)


def test_bytes_and_values_are_formatted_for_reading():
    assert [BUILT_IN["bytes"].text(n) for n in (0, 999, 1500, 506_000, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "506 kB",
        "2.5 GB",
    ]
    assert [format_value(x) for x in (1e5, 10.0, 0.5, 1e-7, 1234567.0, 3)] == [
        "1e5",
        "10",
        "0.5",
        "1e-7",
        "1234567",
        "3",
    ]


def test_a_new_report_replaces_only_the_files_of_reports(finished_sweep, tmp_path):
    """Figures of rows that no longer exist are removed."""
    first = main([str(FINISHED_RUNS), "--output", str(tmp_path / "out")])
    for name in ("mine.png", "my_ranking.png", "ranking.pdf", "notes.txt"):
        (first / "figures" / name).write_text("mine", encoding="utf-8")
    before = {file.name for file in (first / "figures").iterdir()}
    main([str(run_folder(finished_sweep, 0)), "--output", str(first)])
    after = {file.name for file in (first / "figures").iterdir()}
    assert {"mine.png", "my_ranking.png", "ranking.pdf", "notes.txt"} < after
    assert "0_ranking.png" in before and not any(name[0].isdigit() for name in after)
    assert {"ranking.png", "ranking.svg", "matrices.png"} < after and "tradeoff.png" not in after
    assert not list(first.rglob("*.part"))


@pytest.mark.slow
def test_a_killed_report_leaves_whole_files(finished_sweep, tmp_path):
    """Each file is that of the first report or that of the second, and no temporary file is left after the next report."""
    arguments = [str(finished_sweep), "--output", str(tmp_path / "out"), "--title"]
    main([*arguments, "first"])
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    sizes = {file: file.stat().st_size for file in files}
    for delay in (0.0, 0.1, 0.2, 0.4, 0.8):
        command = [sys.executable, "-m", "clbench.report", *arguments, "other"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        old = (tmp_path / "out/figures/ranking.png").stat().st_mtime_ns
        while process.poll() is None and (tmp_path / "out/figures/ranking.png").stat().st_mtime_ns == old:
            time.sleep(0.005)  # until it writes figures
        time.sleep(delay)
        process.kill()
        process.wait()
        assert all(abs(file.stat().st_size - size) < 100 for file, size in sizes.items())  # the titles differ in length
    main([*arguments, "last"])
    assert not list((tmp_path / "out").rglob("*.part"))


# ---- imports of a report

HEAVY = ("torch", "lightning", "hydra")


@pytest.mark.parametrize(
    "statement",
    [
        "import clbench.report",
        "from clbench.report.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        f"from clbench.report.__main__ import main\nmain([{str(FINISHED_RUNS)!r}, '--output', 'out'])",
    ],
    ids=["import", "help", "report"],
)
def test_a_report_imports_neither_torch_nor_lightning_nor_hydra(statement, tmp_path):
    program = f"{statement}\nimport sys\nprint('IMPORTED', [name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["IMPORTED []"], done.stdout + done.stderr
