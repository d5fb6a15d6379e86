"""The blob: a quantized model as bytes and back."""
