"""How good an image is, and what is in a scan."""
