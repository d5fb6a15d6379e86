"""Parts of the stage `package`: the packaged script."""
