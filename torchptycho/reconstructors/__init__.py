"""From diffraction patterns to an image: by a network, or by iterative refinement."""
