"""MLflow: the scalars of each step as one run, by MLflow's own client and its own settings (MLFLOW_TRACKING_URI …)."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from nanhunt.errors import UsageError
from nanhunt.export.steps import PROJECT, facts, refused, steps
from nanhunt.trace.reader import Trace

__all__ = ["export_mlflow"]

#: What a call takes, and the characters that a metric's name may not have.
_TOGETHER = 1000
_FOREIGN = re.compile(r"[^\w\-./ ]")


def export_mlflow(trace: Trace, out: Path | None) -> str:
    """Log a new run; return what was logged, in words.

    Raises UsageError without mlflow, where a place is asked for, and where its store refuses.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise UsageError(
            "--to mlflow: the mlflow package is not installed", hint="pip install 'nanhunt[mlflow]'"
        ) from error
    if out is not None:
        raise UsageError("--to mlflow takes no --out", hint="set MLFLOW_TRACKING_URI, MLflow's own place")
    try:
        return _log(trace, MlflowClient())
    except MlflowException as error:
        raise refused("mlflow", error) from error


def _log(trace: Trace, client: Any) -> str:
    from mlflow.entities import Metric, Param

    experiment = client.get_experiment_by_name(PROJECT)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(PROJECT)
    run = client.create_run(number, run_name=trace.path.stem).info.run_id
    client.log_batch(run, params=[Param(key, value) for key, value in facts(trace).items()])
    now, count, scalars = int(time.time() * 1000), 0, 0
    for step in steps(trace):
        metrics = [Metric(_FOREIGN.sub("_", name), value, now, step.step) for name, value in step.scalars.items()]
        for first in range(0, len(metrics), _TOGETHER):
            client.log_batch(run, metrics=metrics[first : first + _TOGETHER])
        count, scalars = count + 1, scalars + len(metrics)
    client.set_terminated(run)
    return f"{count} steps, {scalars} scalars"
