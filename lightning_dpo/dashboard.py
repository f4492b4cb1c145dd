"""Create a W&B workspace for the runs of a project: `python -m lightning_dpo.dashboard --project lightning_dpo`.

Needs pip install 'lightning-dpo[dashboard]', and WANDB_API_KEY or `wandb login`. Prints the address of the workspace,
which shows the runs that logger=wandb has uploaded. `--dry-run` prints its JSON without network.
"""

import argparse
import hashlib
import json
import sys
from typing import Any

from lightning_dpo.console import exit_codes
from lightning_dpo.errors import ConfigError

STEP = "trainer/global_step"
"""Optimizer steps, the x-axis of Lightning's W&B logger."""

CURVES = {
    "Preference": {
        "rewards, training": ["train/rewards/chosen", "train/rewards/rejected"],
        "rewards, held out": ["val/rewards/chosen", "val/rewards/rejected"],
        "margin": ["train/rewards/margins", "val/rewards/margins"],
        "accuracy": ["train/rewards/accuracies", "val/rewards/accuracies"],
        "loss": ["train/loss", "val/loss"],
    },
    "Displacement and drift": {
        "log-probability, training": ["train/logps/chosen", "train/logps/rejected"],
        "log-probability, held out": ["val/logps/chosen", "val/logps/rejected"],
        "share of chosen responses below the reference": ["val/displacement/chosen_below_reference"],
        "change since the start, nats per token": [
            "val/displacement/chosen_per_token",
            "val/displacement/rejected_per_token",
        ],
        "KL to the reference, nats per completion": ["val/kl"],
    },
    "Samples": {
        "reward of completions": ["val/samples/reward"],
        "length of completions, tokens": ["val/samples/length"],
    },
    "Optimizer": {
        "gradient norm before clipping": ["train/grad_norm"],
        "learning rate": ["train/lr"],
    },
}
"""Sections of line plots: {section: {title: metrics}}."""

SAMPLES = "val/samples"
"""The table of completions."""

FRONTIER = ("val/kl", "val/samples/reward")
"""Axes of the frontier, at the end of each run."""

COORDINATES = {"loss": "loss._target_", "beta": "beta", "learning rate": "optimizer.lr", "seed": "seed"}
"""Settings in the sweep's parallel coordinates, {name: key}; the accuracy and FRONTIER follow."""


def workspace(entity: str | None, project: str, name: str) -> Any:
    """The workspace, always with the same ids.

    Errors: ConfigError if wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn
    except ImportError:
        raise ConfigError("wandb-workspaces is not installed; type pip install 'lightning-dpo[dashboard]'") from None

    accuracy, kl, reward = (wr.SummaryMetric(metric) for metric in ("val/rewards/accuracies.last", *FRONTIER))
    columns = [
        ParallelCoordinatesPlotColumn(wr.Config(key), display_name=title, log=title in ("beta", "learning rate"))
        for title, key in COORDINATES.items()
    ] + [
        ParallelCoordinatesPlotColumn(metric, display_name=title)
        for title, metric in (("accuracy", accuracy), ("KL", kl), ("reward", reward))
    ]
    sweep = [
        wr.ScatterPlot(title="frontier: reward against KL, coloured by beta", x=kl, y=reward, z=wr.Config("beta")),
        wr.ParallelCoordinatesPlot(title="settings and results", columns=columns),
        wr.ScatterPlot(title="accuracy against beta", x=wr.Config("beta"), y=accuracy, log_x=True),
    ]
    sections: dict[str, list[Any]] = {"Sweep": sweep}
    for section, plots in CURVES.items():
        sections[section] = [wr.LinePlot(title=title, x=STEP, y=list(metrics)) for title, metrics in plots.items()]
    sections["Samples"].append(wr.WeavePanelSummaryTable(table_name=SAMPLES))
    for section, panels in sections.items():
        for number, panel in enumerate(panels):
            panel._id = hashlib.sha256(f"{section}/{number}".encode()).hexdigest()[:10]
    return ws.Workspace(
        entity=entity or "",
        project=project,
        name=name,
        sections=[ws.Section(name=section, panels=panels, is_open=True) for section, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def as_json(built: Any) -> str:
    """The JSON that W&B receives."""
    return json.dumps(json.loads(built._to_model().model_dump_json(by_alias=True)), indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="user or team (default: your own default)")
    parser.add_argument("--project", default="lightning_dpo", help="logger.wandb.project (default: %(default)s)")
    parser.add_argument("--name", default="Preference tuning", help="name of the workspace (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace's JSON and send nothing")
    arguments = parser.parse_args()
    with exit_codes():
        if arguments.dry_run:
            sys.stdout.write(as_json(workspace(arguments.entity, arguments.project, arguments.name)))
            return
        from lightning_dpo.loggers.wandb import online_entity

        entity = arguments.entity or online_entity()
        print(workspace(entity, arguments.project, arguments.name).save().url)


if __name__ == "__main__":
    main()
