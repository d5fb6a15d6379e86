"""Parts of the stage `quantize`."""
