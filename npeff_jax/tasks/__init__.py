"""Models and examples to try things on, and readers of real data sets."""
