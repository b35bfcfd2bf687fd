"""Where a run's numbers go while it runs: a CSV file, TensorBoard, MLflow, Weights & Biases, or a place of your own.

`Tracker` is the Protocol, `load_tracker` finds one by name, `Together` are those of one run.
Trackers see what `RoundRecord`s say and change nothing.
"""

from federation.tracking.registry import load_tracker, text_for_run, tracker_names
from federation.tracking.together import Together
from federation.tracking.tracker import Tracker, scalars_of

__all__ = ["Together", "Tracker", "load_tracker", "scalars_of", "text_for_run", "tracker_names"]
