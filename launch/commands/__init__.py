"""The commands of `pdepot`, a module for each group: what they are called, and what they call."""
