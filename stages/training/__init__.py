"""Parts of the stage `train`."""
