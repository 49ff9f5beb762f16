"""Pure functions on arrays: formats, rounding, equalization scales, layouts, references."""
