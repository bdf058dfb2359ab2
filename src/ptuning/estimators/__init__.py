"""A classifier and a regressor of texts with the interface of scikit-learn."""

from __future__ import annotations

from ptuning.estimators.classifier import PTuningClassifier
from ptuning.estimators.regressor import PTuningRegressor

__all__ = ["PTuningClassifier", "PTuningRegressor"]
