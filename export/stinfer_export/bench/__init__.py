"""Measure how fast prediction is, and against what: for developers, and for the README's tables."""
