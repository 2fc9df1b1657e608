"""Models of less than single precision: made, measured against the original, and refused where they fail."""
