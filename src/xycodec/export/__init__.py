"""Codecs as graphs and programs that need neither this package nor, as ONNX, torch."""
