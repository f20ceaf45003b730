"""A decision as a graph: tracing to ONNX and AOTInductor, and opening what was written."""
