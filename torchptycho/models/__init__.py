"""The network, its model of the experiment, and the files that hold them."""
