"""What an optimizer does inside: figures that are derived from its slots alone."""
