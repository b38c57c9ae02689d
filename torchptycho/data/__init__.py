"""From scans to batches: the store, the data set, the data module."""
