"""A component to an edit of the parameters."""
