"""What headlens costs, as ratios measured on this machine. Run: make bench."""
