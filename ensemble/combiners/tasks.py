"""Why a combiner cannot work on a pool, in words."""

from ensemble.members import Pool


def not_classification(pool: Pool, what: str) -> str | None:
    if pool.task_type != "regression":
        return None
    return f"{what} needs classes; the task is regression"


def no_probabilities(pool: Pool, what: str) -> str | None:
    """Metrics that need probabilities have refused others already; elsewhere the values tell."""
    if pool.metric.probabilities:
        return None
    for member in pool.members:
        low, high = float(member.pred_TN.min()), float(member.pred_TN.max())
        if low < 0 or high > 1:
            return (
                f"{what} needs probabilities; the predictions of member {member.name} go from "
                f"{low:g} to {high:g}"
            )
    return None
