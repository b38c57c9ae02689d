"""Containers of untrusted bytes: HDF5, NPZ archives, and files in general."""
