"""csv: a table of one's own. `--targets`, `--task-type` and `--metric` say what it is about."""

from pathlib import Path

from spaces.errors import UserError
from spaces.layout import Layout
from spaces.task import Task

# What is tried to be good at when no metric is named.
METRICS = {
    "regression": "rmse",
    "binary": "auroc",
    "multilabel": "auroc",
    "multiclass": "accuracy",
}


def make_task(
    targets: tuple[str, ...] = ("grade",),
    task_type: str = "multiclass",
    metric: str | None = None,
    image_columns: tuple[str, ...] = ("image",),
    id_column: str = "id",
) -> Task:
    """The task of a data folder with train.csv and, perhaps, test.csv.

    `targets` are columns: of numbers, of 0 and 1, or for multiclass one column that names the
    class. `image_columns` hold paths, one per view of a row.
    """
    faults = []
    if twice := sorted({name for name in targets if targets.count(name) > 1}):
        faults.append(f"--targets names {', '.join(twice)} twice; name each column once")
    if taken := [name for name in targets if name in (id_column, *image_columns)]:
        faults.append(f"--targets names {', '.join(taken)}, which is no target; leave it out")
    if task_type == "binary" and len(targets) > 1:
        faults.append(f"--task-type binary takes one target, not {len(targets)}; use multilabel")
    if faults:
        raise UserError(faults)
    labels = task_type == "multiclass" and len(targets) == 1
    return Task(
        name="csv",
        task_type=task_type,
        layout=Layout(
            id_column=id_column,
            image_columns=image_columns,
            targets=() if labels else targets,
            label_column=targets[0] if labels else "",
        ),
        metric=metric or METRICS.get(task_type, "rmse"),
        write_sample=_write_sample,
    )


def _write_sample(folder: Path, seed: int) -> None:
    from spaces.samples.csv import write_sample

    write_sample(folder, seed)


TASK = make_task()
