"""Models as files that other programs run: ONNX, and TorchScript where it is asked for, each with a card."""
