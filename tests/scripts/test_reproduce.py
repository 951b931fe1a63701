"""scripts/reproduce.py: verdicts of numbers computed by hand, the plan, every protocol, and the command."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from math import inf, isnan, sqrt
from pathlib import Path
from time import monotonic, sleep

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from reproduction.execute import execute  # noqa: E402
from reproduction.figure import figure  # noqa: E402
from reproduction.here import hash_of, train_here  # noqa: E402
from reproduction.page import markdown  # noqa: E402
from reproduction.parse import find_names, load, names, parsed  # noqa: E402
from reproduction.plan import (  # noqa: E402
    Cell,
    at_an_edge,
    decisive_runs,
    final_runs,
    needed_runs,
    number_of_cells,
    read_number,
    read_score,
    search,
)
from reproduction.progress import duration, time_left  # noqa: E402
from reproduction.protocol import Claim, Published, full, quick, usual  # noqa: E402
from reproduction.store import Store  # noqa: E402
from reproduction.verdict import beats, better, compare, reached, share, summary  # noqa: E402
from reproduction.verify import verdict_on  # noqa: E402
from reproduction.write import index, with_texts  # noqa: E402

from clbench.data import TaskSequence  # noqa: E402
from clbench.errors import ConfigError  # noqa: E402

COMMITTED = sorted((ROOT / "results").glob("*.json"))


# --- the verdict ---------------------------------------------------------------------------------------------------------


def test_the_standard_error_is_the_deviation_over_the_root_of_n():
    """The deviation is the sample standard deviation, with n - 1 degrees of freedom."""
    ours = summary([0.90, 0.92, 0.94])
    assert ours.mean == pytest.approx(0.92)
    assert ours.sd == pytest.approx(0.02)
    assert ours.se == pytest.approx(0.02 / sqrt(3))
    assert ours.interval == pytest.approx(4.302653 * ours.se)  # t at .975 with 2 degrees of freedom


@pytest.mark.parametrize(
    ("theirs", "verdict"), [(0.94, "match"), (0.95, "differs"), (0.90, "match"), (0.89, "differs")]
)
def test_a_mean_matches_within_twice_the_joint_standard_error(theirs, verdict):
    found = compare(summary([0.90, 0.92, 0.94]), Published(theirs, n=30, se=0.005))
    assert found.difference == pytest.approx(0.92 - theirs)
    assert found.tolerance == pytest.approx(0.0251661, abs=1e-7)  # 2 sqrt(0.0004/3 + 0.000025)
    assert found.verdict == verdict


@pytest.mark.parametrize(("theirs", "verdict"), [(0.959, "match"), (0.961, "differs")])
def test_a_single_run_matches_within_two_standard_deviations(theirs, verdict):
    """The deviation is that of our runs."""
    found = compare(summary([0.90, 0.92, 0.94]), Published(theirs, n=1))
    assert found.tolerance == pytest.approx(0.04)
    assert found.verdict == verdict


def test_one_run_of_ours_gives_no_verdict():
    found = compare(summary([0.9]), Published(0.9, n=1))
    assert isnan(found.tolerance)
    assert found.verdict == "undecided"


def test_a_claim_on_seeds_counts_those_that_reach_the_value():
    claim = Claim("", "row", "metric", reaches=1.0, on_at_least=2)
    assert reached(claim, [1.0, 0.75, 1.0]) == (True, "2 of 3 seeds")
    assert not reached(claim, [1.0, 0.75, 0.75])[0]
    assert not reached(Claim("", "row", "metric", reaches=1.0, on_at_most=0), [0.5, 1.0])[0]


def test_a_claim_on_seeds_compares_equal_seeds():
    claim = Claim("", "a", "m", beats="b", on_at_least=2)
    assert better(claim, [0.5, 0.7, 0.2], [0.4, 0.6, 0.3]) == (True, "2 of 3 seeds")
    assert not better(replace(claim, on_at_least=3), [0.5, 0.7, 0.2], [0.4, 0.6, 0.3])[0]


@pytest.mark.parametrize(
    ("quality", "key", "score"),
    [
        ({"name": "bits_per_byte", "direction": "lower"}, "average_quality", -2.5),
        ({"name": "mean_iou", "direction": "higher"}, "average_quality", 2.5),
        ({"name": "mean_iou", "direction": "higher"}, "forgetting", -2.5),
    ],
)
def test_the_score_of_a_run_is_higher_if_it_is_better(quality, key, score):
    assert read_score({"quality": quality, key: 2.5}, key) == score
    assert read_score({"diverged": "task 1"}, key) == -inf


def test_on_other_data_values_agree_within_two_standard_errors():
    """Text that comes with Python differs between versions; otherwise the difference is at most .005 as well."""
    committed = [2.0, 2.1, 2.2]  # standard error .0577
    assert verdict_on(2.0, 2.1, committed) == "differs"
    assert verdict_on(2.0, 2.1, committed, tolerance=inf) == "agrees"
    assert verdict_on(2.0, 2.2, committed, tolerance=inf) == "differs"


def test_one_row_beats_another_by_standard_errors():
    ours, other = (
        summary([0.90, 0.92, 0.94]),
        summary([0.86, 0.88, 0.90]),
    )  # se of the difference: 0.02 sqrt(2/3) = 0.0163
    assert beats(Claim("", "a", "m", beats="b", standard_errors=2.0), ours, other)[0]
    assert not beats(Claim("", "a", "m", beats="b", standard_errors=3.0), ours, other)[0]
    assert not beats(Claim("", "a", "m", beats="b"), other, ours)[0]


def test_a_share_is_the_mean_over_seeds_of_the_ratio_of_two_rows():
    claim = Claim("", "a", "m", share_of="b", at_most=0.5)
    holds, measured = share(claim, [1.0, 2.0], [4.0, 4.0])
    assert holds
    assert measured == "0.3750, standard error 0.1250"
    assert not share(claim, [3.0, 2.0], [4.0, 4.0])[0]


# --- the protocol --------------------------------------------------------------------------------------------------------

TINY = {
    "title": "",
    "source": "",
    "text": "",
    "seconds": 1,
    "metrics": {"accuracy": "average_accuracy", "first": "accuracy_matrix.-1.0"},
    "seeds": [0, 1],
    "quick": {"overrides": ["epochs=1"], "seeds": [0]},
}
GRID = {
    "name": "row",
    "overrides": ["strategy=ewc"],
    "grid": {"lam": [1.0, 10.0, 100.0]},
    "select": [{"by": "average_accuracy", "seeds": [7], "overrides": ["data.tasks=3"], "extend": {"lam": 10}}],
}


def protocol_of(**row):
    return parsed("tiny", {**TINY, "rows": [{**GRID, **row}]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"published": {"speed": {"value": 1, "n": 1}}}, "unknown metric speed. Use one of accuracy, first"),
        ({"published": {"accuracy": {"value": 1, "n": 30}}}, "expected n: 1, or n > 1 with se"),
        ({"publish": {}}, "row row: unknown key publish"),
        ({"grid": {}}, "expected grid and select together"),
        ({"baseline": "other"}, "tiny: unknown row other. Use one of row"),
        ({"curve": {"accuracy": [1.0]}}, "expected pairs of a value of the single grid key"),
    ],
)
def test_a_protocol_that_has_no_meaning_is_refused(row, message):
    with pytest.raises(ConfigError, match=message):
        protocol_of(**row)


def test_a_published_deviation_becomes_a_standard_error():
    row = protocol_of(published={"accuracy": {"value": 0.9, "sd": 0.02, "n": 16}}).rows[0]
    assert row.published["accuracy"].se == pytest.approx(0.005)


def test_the_quick_form_has_fewer_seeds_and_the_ends_of_the_grid():
    """It also has overrides of its own."""
    row = quick(protocol_of()).rows[0]
    assert row.grid == {"lam": (1.0, 100.0)}
    assert {cell.seed for cell in needed_runs(row, {})} == {0}
    assert all("epochs=1" in cell.overrides for cell in needed_runs(row, {}))


def two_forms():
    row = {**GRID, "curve": {"accuracy": [[1, 0.1], [3, 0.2]]}, "published": {"accuracy": {"value": 0.9, "n": 1}}}
    forms = {"reduced": ["steps=9"], "full": {"seconds": 60, "seeds": [0, 1], "grid": {"lam": [1, 3, 9, 27]}}}
    trials = [{"by": "average_accuracy", "seeds": [7], "extend": {"lam": 10}}, {**GRID["select"][0]}]
    return parsed("tiny", {**TINY, **forms, "rows": [{**row, "select": trials}]})


def test_the_usual_form_is_not_compared_with_published_numbers():
    """It is a reduced form of a study that has a full form."""
    row = usual(two_forms()).rows[0]
    assert all("steps=9" in cell.overrides for cell in needed_runs(row, {}))
    assert row.published == row.curve == {}
    assert usual(protocol_of()) == protocol_of()


def test_the_full_form_has_seeds_grid_and_published_numbers():
    protocol = full(two_forms())
    row = protocol.rows[0]
    assert (protocol.name, protocol.seconds) == ("tiny-full", 60)
    assert row.grid == {"lam": (1, 3, 9, 27)}
    assert [s.seeds for s in row.select] == [
        (0, 1),
        (7,),
    ]  # the rule with overrides is not published, so its seeds stay
    assert not any(s.extend for s in row.select)
    assert row.published["accuracy"].value == 0.9
    assert row.curve == {"accuracy": ((1, 0.1), (3, 0.2))}
    assert not any("steps=9" in cell.overrides for cell in needed_runs(row, {}))
    with pytest.raises(ConfigError, match="tiny has a single form"):
        full(protocol_of())


def test_a_reduced_form_needs_a_full_one():
    with pytest.raises(ConfigError, match="expected full together with reduced"):
        parsed("tiny", {**TINY, "rows": [GRID], "reduced": ["steps=9"]})


# --- the plan ------------------------------------------------------------------------------------------------------------


def results_of(scores, seed=7):
    """Return metrics.json of trial runs by lam."""
    overrides = ("strategy=ewc", "data.tasks=3")
    return {
        Cell((overrides[0], f"lam={lam}", overrides[1]), seed): {"average_accuracy": score}
        for lam, score in scores.items()
    }


def test_final_runs_at_the_best_point_follow_the_trials():
    row = protocol_of().rows[0]
    assert needed_runs(row, {}) == list(results_of({"1": 0, "10": 0, "100": 0}))
    found = results_of({"1": 0.5, "10": 0.9, "100": 0.7})
    assert needed_runs(row, found)[3:] == [Cell(("strategy=ewc", "lam=10"), 0), Cell(("strategy=ewc", "lam=10"), 1)]


def test_a_best_point_at_an_edge_extends_the_grid():
    """The grid grows until the best point is inside it."""
    row = protocol_of().rows[0]
    found = results_of({"1": 0.5, "10": 0.6, "100": 0.7})
    assert needed_runs(row, found)[-1] == Cell(("strategy=ewc", "lam=1000", "data.tasks=3"), 7)
    found |= results_of({"1000": 0.6})
    assert search(row, row.select[0], found)[1] == {"lam": 100.0}
    below = results_of({"1": 0.9, "10": 0.6, "100": 0.5})
    assert Cell(("strategy=ewc", "lam=0.1", "data.tasks=3"), 7) in needed_runs(row, below)
    in_thirds = {**GRID["select"][0], "extend": {"lam": 3}}
    row = protocol_of(grid={"lam": [0.03, 0.1]}, select=[in_thirds]).rows[0]
    assert needed_runs(row, results_of({"0.03": 0.5, "0.1": 0.6}))[-1].overrides[1] == "lam=0.3", (
        "not 0.30000000000000004"
    )


def test_a_second_selection_rule_may_have_its_own_seeds():
    second = {"by": "validation.average_accuracy", "seeds": [0], "final": [0]}
    row = protocol_of(
        seeds=[0, 1, 2], grid={"lam": [1, 10]}, select=[{"by": "average_accuracy", "seeds": [0]}, second]
    ).rows[0]
    found = {
        Cell(("strategy=ewc", f"lam={lam}"), 0): {"average_accuracy": acc, "validation": {"average_accuracy": 1 - acc}}
        for lam, acc in ((1, 0.9), (10, 0.8))
    }
    judged, reported = (final_runs(row, search(row, rule, found)[1], rule) for rule in row.select)
    assert [cell.arguments for cell in judged] == [("strategy=ewc", "lam=1", f"seed={seed}") for seed in (0, 1, 2)]
    assert [cell.arguments for cell in reported] == [("strategy=ewc", "lam=10", "seed=0")]
    assert set(needed_runs(row, found)) == {*judged, *reported}
    with pytest.raises(ConfigError, match="final is not allowed in the first rule"):
        protocol_of(select=[{**GRID["select"][0], "final": [0]}])


def test_a_diverged_trial_is_the_worst_and_is_reported():
    row = protocol_of().rows[0]
    found = results_of({"1": 0.5, "10": 0.4, "100": 0.3}) | results_of({"0.1": 0.2})
    (cell,) = results_of({"10": 0})
    found[cell] = {"diverged": "weights became non-finite"}
    assert search(row, row.select[0], found)[1] == {"lam": 1.0}
    assert decisive_runs(row, found) == []  # another point can replace it
    found |= {
        Cell(("strategy=ewc", "lam=1"), 1): {"diverged": "weights became non-finite"},
        **results_of({"1000": 0.1}),
    }
    assert search(row, row.select[0], found)[1] == {"lam": 100.0}, "a final run diverged: the next best is taken"
    for cell in found:
        found[cell] = {"diverged": "weights became non-finite"}
    assert needed_runs(row, found)[0].overrides[1] == "lam=0.01", "all diverged: the grid is extended below"
    fixed = {**GRID["select"][0], "extend": {}}
    with pytest.raises(ConfigError, match="row: runs diverged at all 3 points of the grid"):
        search(row, protocol_of(select=[fixed]).rows[0].select[0], found)


def test_a_row_like_another_uses_the_point_chosen_for_that_row():
    ablation = {"name": "without", "like": "row", "overrides": ["strategy=mas"]}
    row = parsed("tiny", {**TINY, "rows": [GRID, ablation]}).rows[1]
    assert needed_runs(row, {}) == list(results_of({"1": 0, "10": 0, "100": 0}))  # the trials of that row
    found = results_of({"1": 0.5, "10": 0.9, "100": 0.7})
    assert needed_runs(row, found)[3:] == [Cell(("strategy=mas", "lam=10"), 0), Cell(("strategy=mas", "lam=10"), 1)]
    assert decisive_runs(row, found) == needed_runs(row, found)[3:]  # no other point can replace it


def test_a_row_like_another_has_no_grid_and_the_other_has_one():
    plain = {"name": "plain", "overrides": ["strategy=ewc"]}
    for rows in ([GRID, {**GRID, "name": "b", "like": "row"}], [plain, {**plain, "name": "b", "like": "plain"}]):
        with pytest.raises(ConfigError, match="expected a grid in that row"):
            parsed("tiny", {**TINY, "rows": rows})


def test_a_best_point_at_an_edge_is_reported():
    """The grid of this row is not extended."""
    row = protocol_of(select=[{"by": "average_accuracy"}]).rows[0]
    trials, _ = search(row, row.select[0], {})
    assert at_an_edge(row, trials, {"lam": 100.0}) == ["lam"]
    assert at_an_edge(row, trials, {"lam": 10.0}) == []


def test_final_runs_that_the_trials_have_made_are_not_repeated():
    row = protocol_of(select=[{"by": "average_accuracy"}]).rows[0]
    found = {cell: {"average_accuracy": 0.5} for cell in needed_runs(row, {})}
    assert len(found) == 6
    assert set(needed_runs(row, found)) == set(found)


def test_the_number_of_runs_counts_trials_and_final_runs():
    assert number_of_cells(protocol_of()) == 3 + 2
    assert number_of_cells(protocol_of(select=[{"by": "average_accuracy"}])) == 6


def test_a_metric_follows_a_dotted_key_through_lists():
    metrics = {"accuracy_matrix": [[0.9, None], [0.7, 0.8]], "validation": None}
    assert read_number(metrics, "accuracy_matrix.-1.0") == 0.7
    with pytest.raises(
        ConfigError, match="validation.average_accuracy is not in metrics.json, which has no average_accuracy"
    ):
        read_number(metrics, "validation.average_accuracy")
    with pytest.raises(ConfigError, match=r"accuracy_matrix.0.1: expected a number in metrics.json, got None"):
        read_number(metrics, "accuracy_matrix.0.1")


def test_the_time_left_is_that_of_the_runs_made_now():
    assert time_left(10, 5, 600) == "20 min"
    assert duration(3725) == "1 h 02 min"
    assert duration(12.3) == "12 s"


# --- every protocol ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_the_ends_of_every_grid_compose_to_different_runs(name):
    """Both ends of every key of a study compose, and no two runs of a row are the same."""
    loaded = load(name)
    hashes = {}
    for protocol in [usual(loaded), quick(usual(loaded)), *([full(loaded)] if loaded.full else [])]:
        for row in protocol.rows:
            first = {key: values[:1] for key, values in row.grid.items()}
            ends = {key: tuple(dict.fromkeys((values[0], values[-1]))) for key, values in row.grid.items()}
            axes = [replace(row, grid={**first, key: ends[key]}) for key in row.grid] or [row]
            runs = {cell.overrides for axis in axes for cell in needed_runs(axis, {})}
            hashes |= {overrides: hash_of(overrides, 0) for overrides in runs - hashes.keys()}
            assert len({hashes[overrides] for overrides in runs}) == len(runs)


@pytest.mark.parametrize("name", names())
def test_the_values_of_a_grid_are_of_one_kind_and_differ(name):  # so that all compose if the ends do
    loaded = load(name)
    for protocol in [loaded, *([full(loaded)] if loaded.full else [])]:
        for row in protocol.rows:
            for key, values in row.grid.items():
                numbers = {float(value) for value in values if is_number(value)}
                assert len(numbers) == len(values) or (not numbers and len(set(values)) == len(values)), (row.name, key)


def is_number(value):
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", names())
def test_every_protocol_has_an_experiment_of_its_own_in_each_row(name):
    for row in load(name).rows:
        assert row.overrides[0].startswith(f"experiment={name}")
        assert (ROOT / f"conf/experiment/{row.overrides[0].partition('=')[2]}.yaml").exists()


# --- committed results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_a_committed_report_agrees_with_its_numbers(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert file.with_suffix(".md").read_text(encoding="utf-8") == markdown(found)
    assert file.with_suffix(".png").exists()


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_the_texts_of_a_result_are_those_of_its_protocol(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found == with_texts(found, load(file.stem)), "run python scripts/reproduce.py --index"


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_every_number_of_a_result_is_on_its_page(file):
    found = json.loads(file.read_text(encoding="utf-8"))
    page = markdown(found)
    selections = [selection["metrics"] for row in found["rows"] for selection in row["selections"]]
    trials = [point["metrics"] for row in found["rows"] for rule in row["trials"] for point in rule["points"]]
    for number in (number for metrics in [*selections, *trials] for number in metrics.values()):
        assert f"{number['mean']:.4f}" in page
        assert number["se"] is None or f"± {number['se']:.4f}" in page


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_every_committed_number_that_differs_has_a_finding(file):
    for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
        if any(number["verdict"] == "differs" for number in row["selections"][0]["metrics"].values()):
            assert row["findings"], row["name"]


def test_the_page_shows_every_committed_result():
    assert (ROOT / "docs/reproductions.md").read_text(encoding="utf-8") == index(
        [json.loads(f.read_text(encoding="utf-8")) for f in COMMITTED]
    )


# --- the command ---------------------------------------------------------------------------------------------------------


def reproduce(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/reproduce.py"), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_a_study_is_interrupted_resumed_and_verified(tmp_path):
    """One run of the resumed study is verified by training it again."""
    command = ("seed_bit_ops", "--quick", "--workers", 1, "--runs", tmp_path)
    folder = tmp_path / "seed_bit_ops-quick"

    process = reproduce(*command)
    deadline = monotonic() + 240
    while not list(folder.glob("*/origin.json")) and monotonic() < deadline:
        sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.endswith("Interrupted. Rerun the same command to resume.\n")
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("*/origin.json")}
    assert 1 <= len(finished) < 4
    assert not list((folder / "results").iterdir())

    process = reproduce(*command)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert f"{len(finished) + 1}/4" in stderr and "4/4" in stderr and f"{len(finished)}/4" not in stderr
    assert "left" in stderr
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    found = json.loads((folder / "results/seed_bit_ops-quick.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in found["rows"]] == ["EWC, lam 1e6", "EWC, lam 10"]
    for row in found["rows"]:
        assert [cell["seed"] for cell in row["cells"]] == [0, 1]
        for cell in row["cells"]:
            assert (folder / cell["config_hash"] / "metrics.json").exists()
            assert cell.keys() == {"seed", "overrides", "values", "config_hash", "fingerprint", "seconds", "commit"}
    report = (folder / "results/seed_bit_ops-quick.md").read_text(encoding="utf-8")
    assert "its numbers mean nothing" in report
    assert "python -m clbench.train experiment=seed_bit_ops lam=10 steps=20" in report
    assert (folder / "results/seed_bit_ops-quick.png").stat().st_size > 10_000

    check = ("--verify", "seed_bit_ops-quick", "--results", folder / "results", "--seed", 1, "--row", "EWC, lam 10")
    process = reproduce(*check)
    out, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, out + stderr
    assert out.count("identical") == 4  # three values and the verdict

    file = folder / "results/seed_bit_ops-quick.json"
    found["rows"][1]["cells"][1]["values"]["AND"] += 0.25
    file.write_text(json.dumps(found), encoding="utf-8")
    process = reproduce(*check)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "differs (-0.25" in out and "verdict: differs" in out


@pytest.mark.slow
def test_a_worker_that_dies_loses_only_its_run(tmp_path):
    good = [Cell(("experiment=seed_bit_ops", "steps=2"), seed) for seed in (0, 1)]
    dies = Cell(("data=bit_ops", "strategy=finetune", "strategy._target_=os.abort"), 0)
    done = []
    failures = execute([(cell, tmp_path / str(i)) for i, cell in enumerate([dies, *good])], 1, done.append)
    assert done == good
    assert [failure.cell for failure in failures] == [dies]
    assert "its worker process ended" in failures[0].reason


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_hides_no_other(tmp_path):
    good = Cell(("experiment=seed_bit_ops", "steps=2"), 0)
    wrong = Cell(("experiment=seed_bit_ops", "lam=-1"), 0)
    done = []
    failures = execute([(cell, tmp_path / str(i)) for i, cell in enumerate([wrong, good])], 1, done.append)
    assert done == [good]
    assert "lam=-1: expected a finite number >= 0" in failures[0].reason


@pytest.mark.slow
def test_runs_of_a_study_share_their_first_task(tmp_path):
    """Runs that have the first task in common train it once."""
    store = Store(tmp_path / "store")
    cells = [Cell(("data.tasks=2", "steps=8", f"lam={lam}"), seed) for seed in (0, 1) for lam in (1, 100)]
    jobs = [*((cell, store.path(cell)) for cell in cells), (cells[1], tmp_path / "alone/run")]
    assert not execute(jobs, 1, store.finished)
    runs = [store.metrics(cell) for cell in cells]
    assert len({run["shared_first_task"] for run in runs} - {None}) == 2  # one for each seed
    assert sum(run["seconds"]["shared"] > 0 for run in runs) == 2
    alone = json.loads((tmp_path / "alone/run/metrics.json").read_text(encoding="utf-8"))
    assert alone["accuracy_matrix"] == runs[1]["accuracy_matrix"]
    store.clear_shared()
    assert {file.name for file in store.folder.iterdir()} == {store.hash(cell) for cell in cells} | {"sweep.log"}


@pytest.mark.slow
def test_a_reproduction_that_another_process_runs_is_left_alone(tmp_path):
    store = Store(tmp_path / "seed_bit_ops-quick")
    store.folder.mkdir()
    with store.locked():
        process = reproduce("seed_bit_ops", "--quick", "--runs", tmp_path)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "seed_bit_ops-quick is in use by another process. Wait until it has ended, or name another folder" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.slow
def test_no_run_starts_after_the_first_ones_fail_for_one_reason(tmp_path):
    cells = [
        Cell(("data=split_mnist", f"data_dir={tmp_path}/no", "data.source.root=/proc/no"), seed) for seed in range(9)
    ]
    failures = execute([(cell, tmp_path / str(cell.seed)) for cell in cells], 1, pytest.fail)
    assert len(failures) == 3
    assert len({failure.reason for failure in failures}) == 1
    assert "data set MNIST is not in /proc/no" in failures[0].reason


@pytest.mark.slow
def test_the_list_names_every_study():
    """The error for an unknown name is one line."""
    out, _ = reproduce("--list").communicate(timeout=120)
    for name in names():
        assert name in out
    process = reproduce("seed_nothing")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert stderr.startswith("error: NAME=seed_nothing: expected a study. Try one of ")
    assert stderr.count("\n") == 1


def test_a_common_prefix_selects_all_names_that_begin_with_it():
    assert find_names("nccl") == ["nccl_permuted_mnist", "nccl_tiny_imagenet"]
    assert find_names("permuted_mnist") == ["permuted_mnist"]
    assert find_names("see") == ["see"]


def test_the_picture_of_a_committed_result_can_be_drawn():
    for file in COMMITTED:
        assert figure(json.loads(file.read_text(encoding="utf-8"))).axes


def test_published_points_are_drawn_inside_the_grid_of_a_row():
    found = json.loads((ROOT / "results/vandeven2025_split_cifar10.json").read_text(encoding="utf-8"))
    row = found["rows"][1]
    row["published_curve"] = {"average accuracy": [[1e-9, 0.1], [1, 0.7], [10, 0.8], [1e30, 0.9]]}
    panel = next(axes for axes in figure(found).axes if axes.get_title() == row["name"])
    theirs = [line.get_xydata().tolist() for line in panel.lines if line.get_marker() == "D"]
    assert theirs == [[[1, 0.7]], [[10, 0.8]]]


@pytest.mark.slow
def test_a_trial_that_diverges_loses_and_is_not_tried_again(tmp_path):
    overrides = ("data=bit_ops", "data.tasks=2", "optimizer=sgd", "steps=40", "epochs=1", "strategy=l2")
    cells = [(Cell((*overrides, "lr=0.1", f"lam={lam}"), 0), tmp_path / lam) for lam in ("0.1", "1e9")]
    failures = execute(cells, 1, lambda cell: None)
    assert [(f.cell, f.diverged) for f in failures] == [(cells[1][0], True)]
    assert "non-finite weights" in failures[0].reason
    store = Store(tmp_path / "store")
    store.diverged(cells[1][0], failures[0].reason)
    assert "non-finite" in store.metrics(cells[1][0])["diverged"]


@pytest.mark.slow
def test_a_worker_does_not_keep_the_data_of_the_runs_before(tmp_path):
    def alive():
        return sum(type(thing) is TaskSequence for thing in gc.get_objects())

    gc.collect()
    before, after = alive(), []
    gc.disable()  # otherwise it may run at any time
    try:
        for seed in range(3):
            train_here(("data=bit_ops", "steps=2", f"seed={seed}"), tmp_path / str(seed))
            after.append(alive())
    finally:
        gc.enable()
    assert after == [before] * 3
