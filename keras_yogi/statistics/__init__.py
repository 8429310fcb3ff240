"""What an optimizer does, in figures that follow from its slots alone."""
