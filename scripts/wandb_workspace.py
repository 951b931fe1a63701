"""Save a predefined view of a W&B project: accuracies by task, loss and penalty, importance, sweeps over lam.

    python scripts/wandb_workspace.py ENTITY [--project clbench] [--tasks 10]
    python scripts/wandb_workspace.py ENTITY --print      # print the specification as JSON, without an account

Requires the package wandb-workspaces (pip install "clbench[wandb-workspaces]"). Saving the view requires a login.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from clbench.metrics.registry import BUILT_IN

try:
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws
except ModuleNotFoundError:
    sys.exit('wandb_workspace.py requires the package wandb-workspaces. Try pip install "clbench[wandb-workspaces]"')

GROUPED = ("data", "scenario", "net", "strategy", "lam", "gamma", "fisher", "samples", "memory")
METRICS = [name for name, metric in BUILT_IN.items() if metric.function is not None and "tex" in metric.shown]
RESULTS = [*METRICS, "validation.average_accuracy"]


def workspace(entity: str, project: str, tasks: int) -> Any:
    """Return the view: one section per question, with runs grouped by their options without the seed."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name="clbench",
        sections=[
            ws.Section(name="Which is best?", panels=results(), is_open=True),
            ws.Section(name="What is forgotten, and when?", panels=by_task(tasks), is_open=True),
            ws.Section(name="Does the penalty do too little, or too much?", panels=balance(), is_open=True),
            ws.Section(name="What is important?", panels=importance()),
            ws.Section(name="What does it cost?", panels=cost()),
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config(name) for name in GROUPED],
            pinned_columns=[f"summary:{name}" for name in RESULTS],
        ),
        auto_generate_panels=True,  # adds panels for everything else that is logged, such as histograms of importance
    )


def results() -> list[Any]:
    """Return panels of the final metrics over the options."""
    final = panels.SummaryMetric("average_accuracy")
    columns = [panels.ParallelCoordinatesPlotColumn(panels.Config("strategy"))]
    columns += [panels.ParallelCoordinatesPlotColumn(panels.Config(name)) for name in ("fisher", "samples", "seed")]
    columns += [panels.ParallelCoordinatesPlotColumn(panels.Config("lam"), log=True)]
    columns += [panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(name)) for name in RESULTS]
    return [
        *(panels.BarPlot(title=BUILT_IN[name].heading, metrics=[name]) for name in METRICS),
        panels.ScatterPlot(title="average accuracy over lam", x=panels.Config("lam"), y=final, log_x=True),
        panels.ParallelCoordinatesPlot(columns=columns),
    ]


def by_task(tasks: int) -> list[Any]:
    """Return panels of the accuracy matrix and of the metrics after each task."""
    accuracies = [f"acc/task_{j}" for j in range(1, tasks + 1)]
    lines = [panels.LinePlot(title=name, x="task", y=[f"cl/{name}"]) for name in METRICS]
    return [
        *lines,
        panels.LinePlot(title="accuracy on each task", x="task", y=accuracies, range_y=(0, 1)),
        panels.MediaBrowser(title="accuracy matrix", media_keys=["accuracy_matrix"], num_columns=1),
        panels.WeavePanelSummaryTable(table_name="accuracy_table"),
    ]


def balance() -> list[Any]:
    """Return panels of loss and penalty. The ratio of their gradients is 1 where they balance."""
    pairs = {
        "loss and penalty": ["train/task_loss", "train/penalty"],
        "penalty over task loss": ["train/penalty_ratio"],
        "gradient norms": ["train/loss_gradient", "train/penalty_gradient"],
        "gradient of the penalty over that of the loss": ["train/gradient_ratio"],
    }
    return [panels.LinePlot(title=title, x="step", y=y, log_y=True) for title, y in pairs.items()]


def importance() -> list[Any]:
    """Return panels of the quantiles of importance in every layer of any network."""
    return [
        panels.LinePlot(title=f"importance, {q}", x="task", metric_regex=f"^importance/.*/{q}$", log_y=True)
        for q in ("median", "q99", "max")
    ]


def cost() -> list[Any]:
    """Return panels of seconds and memory so far."""
    return [
        panels.LinePlot(title=title, x="task", metric_regex=regex)
        for title, regex in (("seconds", "seconds/.*"), ("peak memory, MiB", "memory/.*"))
    ]


def main() -> None:
    """Save or print the view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity", help="your user or team name at W&B")
    parser.add_argument("--project", default="clbench")
    parser.add_argument("--tasks", type=int, default=10, help="number of lines in the chart of accuracies")
    parser.add_argument("--print", action="store_true", help="print the specification and save nothing")
    options = parser.parse_args()
    view = workspace(options.entity, options.project, options.tasks)
    if options.print:
        # save() sends this model, which has no public accessor
        print(view._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2))
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        sys.exit("expected a W&B login to save the view. Run wandb login, or print the specification with --print.")
    view.save()
    print(view.url)


if __name__ == "__main__":
    main()
