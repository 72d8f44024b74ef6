"""One module for each PDE family."""
