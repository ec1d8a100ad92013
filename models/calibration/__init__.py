"""Calibration: fitted operator parameters, how they were fitted, and how well they hold."""

from models.calibration.calibration import Calibration, Error, OperatorFit, load

__all__ = ["Calibration", "Error", "OperatorFit", "load"]
