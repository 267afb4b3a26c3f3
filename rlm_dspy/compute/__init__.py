"""How much a run computes: one plain call for short inputs, votes, a cheap model first; and forecasts of runs."""

from rlm_dspy.compute.direct import answer_directly
from rlm_dspy.compute.forecasting import Forecast, Range, forecast
from rlm_dspy.compute.options import Compute
from rlm_dspy.compute.votes import Agreement, replies_anew, vote

__all__ = [
    "Agreement",
    "Compute",
    "Forecast",
    "Range",
    "answer_directly",
    "forecast",
    "replies_anew",
    "vote",
]
