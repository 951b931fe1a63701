import json
import shutil

import pytest

from clbench.config.options import ELSEWHERE
from clbench.runs.find import find_runs, read_run
from clbench.runs.names import format_value, name_runs
from tests.make_finished_runs import FINISHED_RUNS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"extra": ["mine.worst"]}),
        ("logger", {"csv": {"_target_": "mine.Logger"}}),
        *((key, "another") for key in ELSEWHERE if key not in ("metrics", "logger")),
    ],
)
def test_an_option_without_effect_on_results_separates_no_runs(key, value, tmp_path):
    two = sorted(FINISHED_RUNS.glob("task_incremental/finetune-seed[01]-*"))
    for folder in two:
        shutil.copytree(folder, tmp_path / folder.name)
    file = tmp_path / two[0].name / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["config"][key] = value
    file.write_text(json.dumps(content), encoding="utf-8")
    one, other = name_runs([read_run(folder) for folder in find_runs([tmp_path])])
    assert one["benchmark"] == other["benchmark"] == "permuted_digits, task-incremental, mlp"
    assert one["setup"] == other["setup"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (100000, "1e5"),
            (32, "32"),
            (1e5, "1e5"),
            (1.0000001, "1.0000001"),
            (1.0000002, "1.0000002"),
            (30.0, "30"),
            (0.001, "0.001"),
        ),
        *((1e-5, "1e-5"), (1234567.0, "1234567"), (1.5e6, "1.5e6"), (0.1 + 0.2, "0.30000000000000004"), (0.0, "0")),
    ],
)
def test_values_that_differ_have_different_texts(value, text):
    assert format_value(value) == text
    assert float(format_value(value)) == value


def test_names_show_values_as_a_user_types_them(tmp_path):
    assert [format_value(value) for value in (None, True, False, "none")] == ["null", "true", "false", "none"]
    for name, mean in (("a", None), ("b", 10.0)):
        shutil.copytree(find_runs([FINISHED_RUNS / "task_incremental"])[0], tmp_path / name)
        file = tmp_path / name / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["config"]["data.mean"] = mean
        file.write_text(json.dumps(content), encoding="utf-8")
    names = [run["benchmark"] for run in name_runs([read_run(folder) for folder in find_runs([tmp_path])])]
    assert [name.rpartition(", ")[2] for name in names] == ["data.mean=null", "data.mean=10"]
