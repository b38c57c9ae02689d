"""Evaluation of images and inspection of scans."""
