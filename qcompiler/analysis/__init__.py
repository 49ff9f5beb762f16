"""What passes ask of a graph: layers, tables, foldable edges, Q/DQ patterns."""
