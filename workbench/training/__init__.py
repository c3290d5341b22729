"""One call that trains a model or an adapter, in stages or not, so that it can be watched, stopped and resumed."""

from workbench.training.run import Run, train
from workbench.training.settings import Batch, TrainingFailed, TrainSettings

__all__ = ["Batch", "Run", "TrainSettings", "TrainingFailed", "train"]
