"""Training of the prior on simulated scans."""
