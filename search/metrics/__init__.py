"""Metrics: scores of predictions against truth, on arrays; higher is always better.

A metric is fitted once on all training rows (which freezes its lists of outputs) and then scores
any rows: `get_metric(name).fit(targets_TN).score(pred_TN, true_TN)`.
"""

from search.metrics.checks import check_predictions as check_predictions
from search.metrics.checks import check_truth as check_truth
from search.metrics.core import FittedMetric as FittedMetric
from search.metrics.core import Metric as Metric
from search.metrics.core import get_metric as get_metric
from search.metrics.core import known_metrics as known_metrics
from search.metrics.core import metric_of as metric_of
from search.metrics.correlation import CONSTANT as CONSTANT
from search.metrics.correlation import gene_expr_value as gene_expr_value
from search.metrics.correlation import gene_parts as gene_parts
from search.metrics.correlation import is_constant as is_constant
from search.metrics.correlation import mean_correlation as mean_correlation
from search.metrics.correlation import row_correlations as row_correlations
from search.metrics.decisions import Counts as Counts
from search.metrics.decisions import mean_rate as mean_rate
from search.metrics.decisions import rate as rate
from search.metrics.folds import fold_scores as fold_scores
from search.metrics.folds import joint_score as joint_score
from search.metrics.folds import mean_score as mean_score
from search.metrics.folds import trial_score as trial_score
from search.metrics.formula import Score as Score
from search.metrics.ranking import aurocs as aurocs
from search.metrics.ranking import average_precisions as average_precisions
from search.metrics.thresholds import best_thresholds as best_thresholds
from search.metrics.thresholds import output_weights as output_weights
from search.metrics.thresholds import threshold_candidates as threshold_candidates
