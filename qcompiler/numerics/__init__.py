"""Pure functions on arrays: formats, rounding, equalization scales, packing, references."""
