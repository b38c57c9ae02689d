"""What every other package builds on: scans, geometry, images, configuration, errors."""
