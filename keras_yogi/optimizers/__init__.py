"""One class a file; what they compute is in `rules`, what they store is in `base`."""
