"""How good is a probe? Metrics with intervals, calibration, and the baselines it has to beat."""
