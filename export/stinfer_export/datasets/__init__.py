"""Readers of public data sets: places with measured expression, and the images they lie on."""
