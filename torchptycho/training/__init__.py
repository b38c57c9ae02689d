"""Training around Lightning's loop: duration, checkpoints, logging, monitoring."""
