"""Common base of all packages: scans, geometry, images, configuration, errors."""
