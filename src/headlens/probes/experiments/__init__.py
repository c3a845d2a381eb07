"""Which probe, where? Experiment files, run piece by piece, and the tables that compare what came out."""
