"""Export of a trained network to ONNX and AOTInductor, and the runtimes of the exported files."""
