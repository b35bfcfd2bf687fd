"""What an author writes, and one site's work on it: `Experiment`, tasks, models, and the local part of a round.

Way in: `experiment` (what a folder's ``experiment.py`` defines), `supervised` (the ready-made task), `loop` (what a
trainer does with both). Only `supervised` and the torch half of `models` import torch, and only when a torch model is
met: an experiment on NumPy arrays runs in an interpreter without torch.
"""
