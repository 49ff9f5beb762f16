"""What the passes want to know about a graph, computed in one place."""
