"""The model of the experiment: pure functions on tensors, differentiable, batched, on any device."""
