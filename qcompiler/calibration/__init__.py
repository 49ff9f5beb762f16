"""Calibration: where data comes from, and statistics as graph transforms."""
